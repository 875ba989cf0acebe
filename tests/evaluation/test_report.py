"""The report: self-contained, verdict first, safe against its own prompts, honest about losses."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from t2i_align.errors import UserError
from t2i_align.evaluation.evaluate import run_folders
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.report import render
from t2i_align.evaluation.report.charts import Series, line_chart, nice_ticks, short, smooth
from t2i_align.evaluation.report.curves import displacement, read_columns, read_run
from t2i_align.evaluation.report.pictures import galleries
from tests.evaluation.synthetic import levels_of, make_evaluation

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=y> & \"quoted\" 'single'"


class Page(HTMLParser):
    """Start tags with their attributes, and the text of headings, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self._heading = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h[1-4]", tag):
            self._heading = tag
            self.headings.append((tag, ""))

    def handle_endtag(self, tag):
        if tag == self._heading:
            self._heading = None

    def handle_data(self, data):
        if self._heading:
            tag, text = self.headings[-1]
            self.headings[-1] = (tag, text + data)

    def all(self, tag, css=None):
        return [a for t, a in self.tags if t == tag and (css is None or css in (a.get("class") or "").split())]


def write_run(folder, steps=60, displaced=False):
    folder.mkdir()
    rows = []
    for step in range(1, steps + 1):
        rows.append(
            {
                "step": step,
                "loss": 0.69 - 0.001 * step,
                "implicit_accuracy": 0.5 + 0.002 * step,
                "d_w": (1e-4 if displaced else -1e-4) * step,
                "d_l": 2e-4 * step,
                "margin": 1e-4 * step,
                "grad_norm": None if step == 7 else 0.5,
                "likelihood_displacement": float(displaced and step > 50),
            }
        )
    rows.append({"step": steps, "heldout/implicit_accuracy": 0.61, "heldout/margin": 1e-3})
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 61, "lo')
    (folder / "config.yaml").write_text("seed: 0  # <b>not bold</b>\n")
    (folder / "environment.json").write_text('{"python": "3.11"}')
    return folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    base, tuned = levels_of(40, wins=30, ties=2)
    _, control = levels_of(40, wins=21, ties=1)
    prompts = PromptSet(
        "painted", (HOSTILE, *(f"prompt {i}" for i in range(1, 40))), {"category": ("<i>x</i>",) * 20 + ("y",) * 20}
    )
    return make_evaluation(
        tmp_path_factory.mktemp("report"), {"base": base, "tuned": tuned, "control": control}, prompts, "control"
    )


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "my run")
    return Page(text_of(evaluation, {"tuned": run}))


def text_of(evaluation, runs=None):
    return render(evaluation, evaluation.folder / "report.html", runs).read_text(encoding="utf-8")


def test_nothing_is_fetched_from_anywhere(evaluation):
    text = text_of(evaluation)
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    for tag, attributes in Page(text).tags:
        for key in ("src", "href", "srcset", "action", "poster"):
            if key in attributes:
                assert attributes[key].startswith(("data:", "#")), (tag, key)
    assert not Page(text).all("iframe") and not Page(text).all("object")


def test_verdict_comes_first(page, evaluation):
    assert page.headings[0] == ("h1", "tuned is better than base")
    assert [tag for tag, _ in page.tags].index("h1") < [tag for tag, _ in page.tags].index("nav")
    text = text_of(evaluation)
    assert "tuned wins 78\N{NO-BREAK SPACE}% against base by brightness overall over 40 prompts" in text
    assert text.index("tuned wins 78") < text.index("The control shows no improvement")


def test_several_models_share_the_page(tmp_path):
    base, good = levels_of(60, wins=50)
    _, undecided = levels_of(60, wins=31)
    prompts = PromptSet("painted", tuple(f"prompt {i}" for i in range(60)), {"style": ("x",) * 30 + ("y",) * 30})
    evaluation = make_evaluation(tmp_path, {"base": base, "good": good, "same": undecided}, prompts, replicates=300)
    evaluation.settings["notes"] = {"same": "a <b>note</b>"}
    evaluation.settings["command"] = "t2i-align compare my.yaml"
    text = text_of(evaluation)
    page = Page(text)
    assert page.headings[0][1] == "good is better than base; no evidence of improvement of same"
    assert text.index("correction for 2 of them") < text.index("<nav")
    assert [a["aria-label"].split()[0] for a in page.all("div", "track")[:2]] == [
        "good",
        "same",
    ]  # both bars in the head
    assert "a &lt;b&gt;note&lt;/b&gt;" in text and "t2i-align compare my.yaml" in text
    everyone, *chosen = galleries(evaluation, evaluation.candidates)
    assert everyone.everyone and [one.title for one in chosen] == [
        "good: best wins",
        "good: worst losses",
        "same: best wins",
        "same: worst losses",
    ]
    assert [len(one.cards) for one in chosen] == [4, 4, 4, 4] and chosen[2].cards[0].pictures[1].model == "same"
    cards = page.all("button", "card")
    shown = page.all("span", "picture")
    assert len(shown) == 3 * len(cards) and not any("hidden" in one for one in shown[: 3 * 12])
    assert {"By style: good", "By style: same"} <= {title for _, title in page.headings}
    alone = render(evaluation, tmp_path / "alone.html", model="same").read_text()
    assert Page(alone).headings[0][1] == "No evidence of improvement of same over base"


def test_users_stand_beside_the_verdict_and_survive_on_disk(tmp_path):
    base, tuned = levels_of(40, wins=34)
    owners = tuple(f"user {i // 4}" for i in range(40))
    prompts = PromptSet("asked", tuple(f"prompt {i}" for i in range(40)), {"style": ("x",) * 20 + ("y",) * 20}, owners)
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned}, prompts, replicates=300)
    assert "over 40 prompts of 10 users" in text_of(evaluation) and "of 10 users, 1 seed each" in text_of(evaluation)
    evaluation.write()
    again = type(evaluation).read(tmp_path)
    assert again.prompts.users == owners and again.comparison("tuned").win_rate.users == 10
    assert again.by_group("tuned", "style")["x"].win_rate.users == 5


def test_undecided_and_worse_say_so(tmp_path):
    base, tuned = levels_of(30, wins=17)
    undecided = make_evaluation(tmp_path / "a", {"base": base, "tuned": tuned})
    assert Page(text_of(undecided)).headings[0][1] == "No evidence of improvement of tuned over base"
    base, tuned = levels_of(30, wins=4)
    worse = make_evaluation(tmp_path / "b", {"base": base, "tuned": tuned})
    assert Page(text_of(worse)).headings[0][1] == "tuned is worse than base"
    assert Page(text_of(worse)).all("header", "worse")


def test_prompts_cannot_become_markup(page, evaluation):
    assert len(page.all("script")) == 1
    assert not [a for a in page.all("img") if "onerror" in a or a.get("src") == "x"]
    assert not page.all("i") and HOSTILE not in text_of(evaluation)
    assert HOSTILE in [card["data-prompt"] for card in page.all("button", "card")]


def test_wins_and_losses_are_both_shown_in_order(page, evaluation):
    wins, losses, plain = galleries(evaluation, ["tuned"])
    assert (len(wins.cards), len(losses.cards), len(plain.cards)) == (12, 8, 12)
    assert "30 of 40" in wins.note and "8 of 40" in losses.note
    assert all(card.difference > 0 for card in wins.cards) and all(card.difference < 0 for card in losses.cards)
    assert [card.prompt_index for card in plain.cards] == list(range(12))
    shown = [text for tag, text in page.headings if tag == "h3"]
    assert any(text.startswith("Best wins") for text in shown)
    assert any(text.startswith("Worst losses") for text in shown)


def test_cards_carry_every_model_and_score(page):
    cards = page.all("span", "picture")
    assert len(cards) == 3 * len(page.all("button", "card"))
    assert [card["data-model"] for card in cards[:3]] == ["base", "tuned", "control"]
    assert [name for name, _ in json.loads(cards[0]["data-scores"])] == ["brightness overall", "brightness red"]
    assert "hidden" in cards[2] and "hidden" not in cards[1]
    assert all(image["alt"] for image in page.all("img"))


def test_table_is_sortable_and_complete(page, evaluation):
    assert len(page.all("table", "sortable")) == 2
    values = [float(cell["data-value"]) for cell in page.all("td", "number") if "data-value" in cell]
    assert len(values) == 4 * 7 + 4 * 5  # tuned and control by two dimensions; two labels by two dimensions
    assert values[3] == pytest.approx(evaluation.comparison("tuned").win_rate.value)


def test_training_configuration_and_repetition_are_there(evaluation, tmp_path):
    run = write_run(tmp_path / "my run")
    text = text_of(evaluation, {"tuned": run})
    assert len(Page(text).all("svg", "chart")) == 5
    assert "No likelihood displacement" in text
    assert "&lt;b&gt;not bold&lt;/b&gt;" in text
    assert f"t2i-align train &#39;{run}/config.yaml&#39;" in text
    assert "t2i-align evaluate base=models/base tuned=models/tuned control=models/control" in text
    assert "--seed 0" in text and "--scorer brightness" in text


def test_displacement_is_called_out(evaluation, tmp_path):
    text = text_of(evaluation, {"tuned": write_run(tmp_path / "run", displaced=True)})
    assert "Likelihood displacement from step 51" in text


def test_displacement_needs_more_than_noise():
    steps = np.arange(40.0)
    noise = np.random.default_rng(0).normal(size=40)
    flat = {"d_w": (steps, noise), "margin": (steps, noise[::-1])}
    assert displacement(flat)[0] is False
    assert displacement({"d_w": (steps, noise + 5), "margin": (steps, noise + 5)})[0] is True
    assert displacement({"loss": (steps, noise)}) == (False, None)
    watched = {"d_w": (steps, noise + 5), "margin": (steps, noise + 5), "likelihood_displacement": (steps, 0 * steps)}
    judged, sentence = displacement(watched)  # the run itself found it small beside the reference's error
    assert judged is False and "healthy" in sentence


def test_missing_pictures_are_confessed(tmp_path):
    base, tuned = levels_of(10, wins=8)
    first = make_evaluation(tmp_path, {"base": base, "tuned": tuned})
    (tmp_path / "tuned" / "images" / "00001.png").write_bytes(b"broken")
    rows = [
        row if (row.model, row.prompt_index) != ("tuned", 1) else type(row)(*(*astuple(row)[:-1], None))
        for row in first.scores.rows
    ]
    broken = type(first)(**{**first.__dict__, "scores": type(first.scores)(tuple(rows)), "_cache": {}})
    text = text_of(broken)
    assert "1 of tuned’s pictures have no score" in text and "no picture</span>" in text


def test_run_folder_without_metrics_is_explained(tmp_path):
    with pytest.raises(UserError, match="no metrics.jsonl"):
        read_run("tuned", tmp_path)


def test_metrics_are_read_with_gaps(tmp_path):
    columns = read_columns(write_run(tmp_path / "run") / "metrics.jsonl")
    steps, values = columns["grad_norm"]
    assert len(steps) == 60 and np.isnan(values[6])
    assert columns["heldout/implicit_accuracy"][1].tolist() == [0.61]


def test_charts_by_hand():
    assert nice_ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert nice_ticks(0.31, 0.69) == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert nice_ticks(5.0, 5.0)[0] < 5.0 < nice_ticks(5.0, 5.0)[-1]
    np.testing.assert_allclose(smooth(np.array([1.0, np.nan, 1.0]), 0.5), [1.0, 1.0, 1.0])
    np.testing.assert_allclose(smooth(np.array([0.0, 1.0]), 0.5), [0.0, 2 / 3])
    assert [short(v) for v in (0.0, 0.0012345, 1234.5, 5e-6, -2e6)] == ["0", "0.00123", "1234", "5e-6", "-2e6"]


def test_a_gap_breaks_the_line_and_long_curves_are_thinned():
    svg = line_chart([Series("a", np.arange(4.0), np.array([1.0, np.nan, 2.0, 3.0]))], "a")
    assert re.search(r'd="M[\d. ]+M[\d. ]+L[\d. ]+"', svg)
    long = line_chart([Series("a", np.arange(10_000.0), np.arange(10_000.0))], 'quote " and <b>')
    assert long.count("L") <= 400 and "<b>" not in long


def astuple(row):
    return tuple(getattr(row, name) for name in type(row).__slots__)


def test_every_diagnostic_of_a_run_is_drawn(tmp_path):
    row = {"step": 1, "loss": 0.7, "grad_norm": 2.0, "reference_divergence": 1e-3}
    row |= {f"logits/abs_{name}": value for name, value in {"p50": 0.1, "p90": 0.5, "max": 2.0}.items()}
    row |= {f"implicit_accuracy_by_timestep/{quarter}_of_4": 0.5 + 0.1 * quarter for quarter in range(4)}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 2}) + "\n")
    charts = {chart.title: chart for chart in read_run("tuned", tmp_path).charts}
    assert [name for name, _, _ in charts["Size of the logit"].legend] == ["median", "90 %", "largest"]
    assert len(charts["Implicit accuracy by noise"].legend) == 4
    assert {"Gradient norm", "Divergence of the reference", "Loss"} <= set(charts)


def test_models_that_are_runs_bring_their_curves(tmp_path):
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("metrics.jsonl", "config.yaml"):
        (run / name).touch()
    models = {"base": "shapes:base", "a": str(run), "b": str(run / "export"), "c": str(tmp_path / "elsewhere")}
    assert run_folders(models) == {"a": run, "b": run}


def test_every_judge_is_explained(evaluation, tmp_path):
    from reward_models.registry import SCORERS
    from t2i_align.evaluation.judges import JUDGES, OWN, about
    from t2i_align.evaluation.scorers import BUILT_IN

    assert {*SCORERS, *BUILT_IN, "taste"} == set(JUDGES)
    assert all(len(words) > 80 for words in JUDGES.values())
    assert "[0, 1]" in about("oracle", "oracle") and "web app" in about("pickscore", "pickscore")
    assert about("taste:1000003") == JUDGES["taste"] and about("brightness") == OWN
    assert "trained on pictures of the built-in world" in about("hpsv2.1", "shapes:hpsv2.1")
    assert "weights of your own (mine/pick)" in about("pickscore", "pickscore=mine/pick")
    assert "condition is “aesthetic”" in about("mps:aesthetic", "mps:aesthetic")
    assert OWN in text_of(evaluation)


def test_model_names_keep_their_spelling(tmp_path):
    """No style sheet turns dpo into Dpo at the start of a sentence."""
    base, dpo = levels_of(40, wins=34)
    text = text_of(make_evaluation(tmp_path, {"base": base, "dpo": dpo}))
    assert "<h1>dpo is better than base</h1>" in text
    assert "first-letter" not in text and "capitalize" not in text


def test_only_what_stands_the_correction_is_coloured(tmp_path):
    base, tuned = levels_of(12, wins=12)
    text = text_of(make_evaluation(tmp_path, {"base": base, "tuned": tuned}))
    assert "tuned: too few prompts for a verdict (12 of 20)" in text
    assert "with fewer than 20 different prompts" in text
    assert not Page(text).all("span", "fill better") and not Page(text).all("b", "better")
