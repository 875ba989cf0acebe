"""`--scorer file.py:function`: everywhere a scorer is named, and never before it has to be run."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import reward_models
from reward_models import RewardModelError
from t2i_align import cli
from t2i_align.data.pictures import decode
from t2i_align.errors import UserError
from t2i_align.evaluation.scorers import open_scorer
from t2i_align.rewards.scorers import check_scorer_words, load_scorers
from t2i_align.stepwise.config import RolloutConfig
from tests.data_pkg.make import encoded, pickapic, picture, write_parquet

DOCS = Path(__file__).parents[2] / "docs" / "reward-models.md"


def run(*words):
    return CliRunner().invoke(cli.app, [*map(str, words)])


def own(folder, body, name="mine.py"):
    path = folder / name
    path.write_text(body)
    return path


def brightness(folder):
    return own(
        folder,
        "import numpy as np\n\n\ndef brightness(prompts, images):\n"
        "    return [float(np.asarray(image).mean()) for image in images]\n",
    )


def odd_pairs(path):
    """A turned JPEG, a half-transparent PNG, 16-bit grey and palette with transparency, two pairs of them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = picture(1, 24, 16).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((24, 16)))
    grey = Image.fromarray(np.full((16, 24), 25700, dtype=np.uint16))
    index = encoded(picture(2, 24, 16).convert("P"), transparency=3)
    sides = [[encoded(picture(0, 24, 16), "JPEG", exif=exif), encoded(grey)], [encoded(clear), index]]
    return write_parquet(path, pickapic([1.0, 0.0], jpg_0=sides[0], jpg_1=sides[1]))


def top_left(folder):
    """Sees what a mean does not: where a picture is turned to."""
    return own(
        folder, "def corner(prompts, images):\n    return [sum(image.getpixel((0, 0))) for image in images]\n", "at.py"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_are_of_the_pixels_that_training_sees(tmp_path, workers):
    pairs = odd_pairs(tmp_path / "pairs.parquet")
    words = f"{brightness(tmp_path)}:brightness,{top_left(tmp_path)}:corner"
    done = run("rewards", "label", pairs, tmp_path / "out.parquet", "--scorer", words, "--workers", workers)
    assert done.exit_code == 0, done.output
    rows = pq.read_table(tmp_path / "out.scores.parquet").to_pylist()
    found = {(row["id"], row["scorer"]): row["score"] for row in rows}
    sources = pq.read_table(pairs).to_pylist()
    ids = sorted({row["id"].rpartition("/")[0] for row in rows})
    assert len(found) == 8
    for pair_id, row in zip(ids, sources, strict=True):
        for side, name in zip("ab", ("jpg_0", "jpg_1"), strict=True):
            pixels = np.asarray(decode(row[name]))
            assert found[f"{pair_id}/{side}", "mine.py:brightness"] == pytest.approx(pixels.mean(), rel=1e-6)
            assert found[f"{pair_id}/{side}", "at.py:corner"] == pixels[0, 0].sum()
    assert found[f"{ids[1]}/a", "mine.py:brightness"] == 100.0  # 25700 of 65535
    assert {row["preprocessing"] for row in rows} == {"as_decoded"}


def test_score_and_evaluate_know_it_by_file_and_hash(tmp_path):
    path = brightness(tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        picture(number, 8 + number, 9).save(tmp_path / "pictures" / f"{number}.png")  # of different sizes
    (tmp_path / "prompts.txt").write_text("a fox\n")
    words = ["--images", tmp_path / "pictures", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "s.parquet"]
    done = run("score", *words, "--scorer", f"{path}:brightness", "--workers", 0)
    assert done.exit_code == 0, done.output
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    expected = [np.asarray(picture(number, 8 + number, 9)).mean() for number in range(3)]
    assert [row["score"] for row in rows] == pytest.approx(expected, rel=1e-6)
    judge = open_scorer(f"{path}:brightness")
    assert (judge.name, judge.version) == (rows[0]["scorer"], rows[0]["version"])
    scores = judge.score(["a fox"] * 3, [picture(number, 8 + number, 9) for number in range(3)])
    assert scores["overall"] == pytest.approx(expected, rel=1e-6)
    path.write_text(path.read_text() + "# another file\n")
    assert open_scorer(f"{path}:brightness").version != judge.version


def test_the_example_of_the_page(tmp_path):
    section = DOCS.read_text(encoding="utf-8").partition("## A scorer of your own")[2]
    code = re.search(r"```python\n(# warmth\.py\n.*?)```", section, flags=re.DOTALL)[1]
    assert len(code.splitlines()) <= 10
    path = own(tmp_path, code, "warmth.py")
    red, blue = Image.new("RGB", (4, 4), (200, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    scorer = reward_models.load(f"{path}:warmth")
    torch.testing.assert_close(scorer.score("a fox", [red, blue]), torch.tensor([200 / 255, -1.0]))
    assert scorer.name == "warmth.py:warmth" and scorer.version.startswith("sha256:")


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ("[1.0]", "for 2 pictures"),
        ("[1.0, 2.0, 3.0]", "for 2 pictures"),
        ("[[1.0], [2.0]]", "list for picture 0"),
        ("[1.0, float('nan')]", "nan for picture 1"),
        ("[float('inf'), 1.0]", "inf for picture 0"),
        ("[1e39, 1.0]", "1e+39 for picture 0"),  # finite, but not as float32
        ("[True, 1.0]", "bool for picture 0"),
        ("['1', '2']", "str for picture 0"),
        ("'12'", "str"),
        ("None", "NoneType"),
        ("(score for score in (1.0, 2.0))", "generator"),
    ],
)
def test_what_it_returns_is_checked(tmp_path, returned, found):
    path = own(tmp_path, f"def score(prompts, images):\n    return {returned}\n")
    with pytest.raises(RewardModelError, match=r"mine\.py:score must return one finite number") as error:
        load_scorers([f"{path}:score"])[0].score("a fox", [picture(0), picture(1)])
    assert found in error.value.found


@pytest.mark.parametrize(
    "returned", ["(1, 2)", "numpy.array([1.0, 2.0])", "torch.tensor([1.0, 2.0])", "[numpy.float64(1), 2]"]
)
def test_what_it_may_return(tmp_path, returned):
    path = own(tmp_path, f"import numpy, torch\n\n\ndef score(prompts, images):\n    return {returned}\n")
    scores = load_scorers([f"{path}:score"])[0].score("a fox", [picture(0), picture(1)])
    assert torch.equal(scores, torch.tensor([1.0, 2.0]))


def test_it_is_called_with_lists_of_at_most_a_batch(tmp_path):
    body = "calls = []\n\n\ndef score(prompts, images):\n    calls.append((prompts, [i.mode for i in images]))\n"
    path = own(tmp_path, f"{body}    return [0.0] * len(images)\n")
    scorer = load_scorers([f"{path}:score"])[0]
    scorer.score(["a", "b", "c"], [picture(0), picture(1).convert("RGBA"), picture(2).convert("L")], batch_size=2)
    assert scorer.function.__globals__["calls"] == [(["a", "b"], ["RGB", "RGB"]), (["c"], ["RGB"])]


def test_its_own_errors_name_the_line(tmp_path):
    path = own(tmp_path, "def score(prompts, images):\n    return images[0].nothing\n")
    with pytest.raises(RewardModelError, match="failed") as error:
        load_scorers([f"{path}:score"])[0].score("a fox", [picture(0)])
    assert "AttributeError" in error.value.found and "mine.py, line 2" in error.value.found


REFUSED = {
    "no function named": ("def score(p, i): ...\n", "", "needs the name of its function"),
    "another name": ("def score(p, i): ...\n", ":scor", "did you mean 'score'"),
    "not Python": ("def score(\n", ":score", "not valid Python"),
    "a checkpoint": ("def score(p, i): ...\n", ":score=weights", "needs the name of its function"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_found_before_anything_is_run(tmp_path, case):
    body, ending, message = REFUSED[case]
    path = own(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{body}")
    with pytest.raises(UserError, match=message):
        check_scorer_words([f"{path}{ending}"])
    with pytest.raises(UserError, match=message):
        load_scorers([f"{path}{ending}"])
    assert not (tmp_path / "ran").exists()


def test_mistakes_that_only_running_shows(tmp_path):
    for body, message in {
        "score = 3\n": "must be a function",
        "def score(prompts): ...\n": "two arguments",
        "import nowhere_at_all\n\nscore = nowhere_at_all.score\n": "ModuleNotFoundError",
    }.items():
        with pytest.raises(RewardModelError, match=message):
            load_scorers([f"{own(tmp_path, body)}:score"])
    with pytest.raises(UserError, match="cannot be read"):
        check_scorer_words([f"{tmp_path / 'absent.py'}:score"])


def test_a_file_named_in_a_config_is_not_run_by_checking_it(tmp_path):
    path = own(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\n\ndef score(prompts, images): ...\n")
    base = {"pretrained_model_name_or_path": "shapes:base"}
    online = {
        "model": base,
        "data": {"source": "shapes:pairs", "resolution": 64},
        "objective": {"preset": "dpo"},
        "online": {"method": "online_dpo", "scorer": f"{path}:score"},
        "training": {"train_batch_size": 2, "learning_rate": 1e-4, "max_train_steps": 2},
        "output_dir": str(tmp_path / "run"),
    }
    compare = {
        "output_dir": str(tmp_path / "compare"),
        "models": {"base": {"model": "shapes:base"}, "other": {"model": "shapes:base"}},
        "evaluation": {"scorers": [f"{path}:score"]},
    }
    for name, values in {"online": online, "compare": compare}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        done = run("config", "check", tmp_path / f"{name}.yaml")
        assert done.exit_code == 0, done.output
    assert not (tmp_path / "ran").exists()
    for name, words in {"online": "online.scorer=pickscor", "compare": "evaluation.scorers=[pickscor]"}.items():
        done = run("config", "check", tmp_path / f"{name}.yaml", words)
        assert done.exit_code == 2 and "did you mean 'pickscore'" in done.output


def test_an_ensemble_file_runs_no_code(tmp_path):
    path = brightness(tmp_path)
    member = {"name": f"{path}:brightness", "weight": 1.0, "mean": 100.0, "std": 10.0}
    (tmp_path / "both.json").write_text(json.dumps({"reference_set": "none", "members": [member]}))
    with pytest.raises(RewardModelError, match="cannot name a scorer of your own"):
        reward_models.load("ensemble", tmp_path / "both.json")
    both = reward_models.load("ensemble", members=[member], reference_set="none")
    assert both.score("a fox", [Image.new("RGB", (4, 4), (120, 120, 120))]) == pytest.approx(2.0)


def test_it_has_no_gradient(tmp_path):
    name = f"{brightness(tmp_path)}:brightness"
    with pytest.raises(RewardModelError, match="not differentiable"):
        reward_models.load(name).score_tensor("a fox", torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="needs a differentiable scorer"):
        RolloutConfig.model_validate({"preset": "tailorpo", "scorer": {"reward": name}, "reward_guidance": 1.0})


def test_packaged_heads_load_by_their_address():
    by_address = reward_models.load("shapes:mps:aesthetic", device="cpu")
    from t2i_align.shapes.assets import head_path

    by_path = reward_models.load("mps", head_path("mps"), "cpu", condition="aesthetic")
    asked = picture(0, 64, 64)
    assert by_address.version == by_path.version and by_address.name == "mps:aesthetic"
    assert by_address.score("a red circle", [asked]) == by_path.score("a red circle", [asked])
    assert reward_models.load("pickscore", "shapes:pickscore", "cpu").version.startswith("sha256:")
    for name, checkpoint, message in [
        ("shapes:pickscor", None, "did you mean 'pickscore'"),
        ("pickscore", "shapes:nothing", "no such part of the shapes world"),
        ("shapes:pickscore", "weights", "takes no other checkpoint"),
    ]:
        with pytest.raises(RewardModelError, match=message):
            reward_models.load(name, checkpoint, "cpu")


def test_an_address_without_its_package(monkeypatch):
    monkeypatch.setattr("reward_models.addresses.RESOLVERS", {"shapes:": "no_such_package.assets:resolve"})
    with pytest.raises(RewardModelError, match="needs the package no_such_package, which is not installed"):
        reward_models.load("shapes:pickscore", device="cpu")


def test_a_picture_handed_over_as_a_file_is_the_same(tmp_path):
    scorer = load_scorers([f"{top_left(tmp_path)}:corner"])[0]
    data = encoded(picture(0))
    (tmp_path / "a.png").write_bytes(data)
    sources = [data, tmp_path / "a.png", Image.open(io.BytesIO(data)), np.asarray(picture(0))]
    assert len(set(scorer.score("a fox", sources).tolist())) == 1
