"""Drift: measures by hand, alarms that ring when they should and are quiet when nothing happened."""

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_align.errors import UserError
from t2i_align.evaluation import checkpoints
from t2i_align.evaluation.drift import appearance, measure, trajectory
from t2i_align.evaluation.drift.agreement import agreement, spearman
from t2i_align.evaluation.drift.features import (
    ClipEncoder,
    PerceptualEncoder,
    distance_to_others,
    mean_pairwise_distance,
    mean_pairwise_square,
    open_encoder,
    unit,
    vendi_score,
)
from t2i_align.evaluation.drift.trajectory import cross_fitted_fall
from t2i_align.evaluation.report import render
from t2i_align.evaluation.results import Evaluation
from t2i_align.evaluation.table import ScoreRow, ScoreTable
from tests.evaluation.synthetic import levels_of, make_evaluation
from tests.tiny import make_vae


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return make_vae(downsamples=1).eval()


def noise(seed, low=0, high=256, side=16):
    pixels = np.random.default_rng(seed).integers(low, high, (side, side, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_appearance_by_hand():
    red = appearance(Image.new("RGB", (4, 4), (255, 0, 0)))
    assert red["saturation"] == red["clipped"] == 1.0
    assert red["brightness"] == pytest.approx(0.299) and red["contrast"] == red["sharpness"] == 0.0
    assert red["colourfulness"] == pytest.approx(0.3 * np.sqrt(1 + 0.25))
    grey = appearance(Image.new("RGB", (4, 4), (128, 128, 128)))
    assert grey["saturation"] == grey["colourfulness"] == grey["clipped"] == 0.0
    board = np.indices((6, 6)).sum(axis=0) % 2 * 255
    assert appearance(Image.fromarray(board.astype(np.uint8)))["sharpness"] == pytest.approx(16e3)
    half = appearance(Image.new("RGB", (2, 2), (200, 100, 100)))
    assert half["saturation"] == pytest.approx(0.5)


def test_distances_equal_their_definitions():
    rows = unit(np.random.default_rng(0).normal(size=(5, 7)))
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    assert mean_pairwise_distance(rows) == pytest.approx(np.mean([1 - rows[i] @ rows[j] for i, j in pairs]))
    assert mean_pairwise_square(rows) == pytest.approx(np.mean([((rows[i] - rows[j]) ** 2).sum() for i, j in pairs]))
    expected = [np.mean([1 - rows[i] @ rows[j] for j in range(5) if j != i]) for i in range(5)]
    np.testing.assert_allclose(distance_to_others(rows), expected)


def test_vendi_counts_different_pictures():
    assert vendi_score(np.tile(unit(np.ones((1, 4))), (6, 1))) == pytest.approx(1.0)
    assert vendi_score(np.eye(6)) == pytest.approx(6.0)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3.0)
    many = unit(np.random.default_rng(0).normal(size=(20, 5)))  # either Gram matrix has the same eigenvalues
    eigenvalues = np.linalg.eigvalsh(many @ many.T / 20)[-5:]
    assert vendi_score(many) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def test_perceptual_distance_grows_with_the_change(vae):
    encode = PerceptualEncoder(vae, "test")
    picture = noise(0)
    slightly = Image.blend(picture, noise(1), 0.1)
    much = Image.blend(picture, noise(1), 0.8)
    rows, coarse = encode([picture, slightly, much, picture])
    assert coarse.shape == (4, 8 * 4 * 4)
    near, far = ((rows[1] - rows[0]) ** 2).sum(), ((rows[2] - rows[0]) ** 2).sum()
    assert 0 < near < far <= 4.0 and ((rows[3] - rows[0]) ** 2).sum() < 1e-9
    alone, _ = encode([slightly])
    np.testing.assert_allclose(alone[0], rows[1], atol=1e-5)


def repaint(evaluation, model, draw_picture):
    for index in range(evaluation.scores.shape[0] * evaluation.scores.shape[1]):
        draw_picture(index).save(evaluation.folder / model / "images" / f"{index:05d}.png")


def painted(tmp_path, prompts=8, draws=2):
    levels = np.full((prompts, draws), 100)
    evaluation = make_evaluation(tmp_path, {"base": levels, "tuned": levels + 5}, replicates=500)
    repaint(evaluation, "base", noise)
    return evaluation


def test_an_unchanged_model_sets_no_alarm(tmp_path, vae):
    evaluation = painted(tmp_path)
    repaint(evaluation, "tuned", lambda index: noise(index + 5000))
    found = measure(evaluation, vae=vae, device="cpu")
    assert found.warnings("tuned") == []
    shifts = {shift.measure: shift for shift in found.shifts["tuned"]}
    assert shifts["distance"].before == 0.0 < shifts["distance"].after
    assert {"saturation", "seed_distance", "seed_perceptual", "seed_vendi", "prompt_distance"} <= set(shifts)
    assert found.vendi["base"] > 2.0


def test_faded_pictures_and_one_picture_for_everything_are_called_out(tmp_path, vae):
    evaluation = painted(tmp_path)
    repaint(evaluation, "tuned", lambda index: noise(7, 110, 140))
    found = measure(evaluation, vae=vae, device="cpu")
    text = " ".join(found.warnings("tuned"))
    assert "Saturation of tuned" in text and "lower" in text
    assert "Variety between seeds" in text and "has lost 100 %" in text and "Variety between prompts" in text
    assert found.vendi["tuned"] == pytest.approx(1.0, abs=1e-3)


def test_a_missing_picture_takes_no_part(tmp_path, vae):
    evaluation = painted(tmp_path, prompts=4)
    repaint(evaluation, "tuned", lambda index: noise(index + 5000))
    (tmp_path / "tuned" / "images" / "00001.png").write_bytes(b"broken")
    for draw in range(2):
        (tmp_path / "tuned" / "images" / f"{4 + draw:05d}.png").unlink()
    shifts = {s.measure: s for s in measure(evaluation, vae=vae, device="cpu").shifts["tuned"]}
    assert shifts["saturation"].difference.n == 3


def scored(values, prompts=200, baseline="base"):
    """An evaluation of scores alone: model -> {(scorer, dimension): [n]}."""
    rows = [
        ScoreRow(model, i, 0, f"p{i}", i, "", scorer, "1", dimension, float(scores[i]))
        for model, columns in values.items()
        for (scorer, dimension), scores in columns.items()
        for i in range(prompts)
    ]
    from t2i_align.evaluation.prompts import PromptSet

    return Evaluation(
        folder=None,
        models={name: name for name in values},
        baseline=baseline,
        control=None,
        prompts=PromptSet("p", tuple(f"p{i}" for i in range(prompts))),
        settings={},
        scores=ScoreTable(tuple(rows)),
        replicates=500,
    )


def test_a_proxy_that_the_others_contradict_is_named():
    generator = np.random.default_rng(0)
    proxy, gold, third = ("proxy", "overall"), ("oracle", "semantic"), ("oracle", "aesthetic")
    before = {score: np.round(generator.normal(size=200) * 64) / 64 for score in (proxy, gold, third)}
    gain = 0.5 + np.round(generator.uniform(size=200) * 64) / 64
    after = {proxy: before[proxy] + gain, gold: before[gold] - gain, third: before[third] + 0.5}
    found = agreement(scored({"base": before, "tuned": after}), "tuned", proxy)
    assert found.contradicted == 0.0  # one of the two held-out scores agrees
    assert found.gap.low > 0.5 and found.correlation[0, 1] == pytest.approx(-1.0)
    assert np.isnan(found.correlation[0, 2]) and found.following.high < 0 < found.aesthetics.low
    from t2i_align.evaluation.drift.measure import Drift

    sentences = Drift("", {}, {}, {"tuned": found}).warnings("tuned")
    assert any("proxy overall" in text for text in sentences)
    assert any("follow their prompts less" in text for text in sentences)


def test_spearman_needs_variation():
    assert spearman(np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.0, 8.0, 5.0, 9.0])) == pytest.approx(1.0)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def curve(means, noise_level=1.0, seed=0, prompts=200):
    """Scores of checkpoints whose mean gains over the baseline are ``means`` by oracle, rising by proxy."""
    generator = np.random.default_rng(seed)
    oracle, proxy = ("oracle", "overall"), ("proxy", "overall")
    base = generator.normal(size=prompts)
    values = {"base": {oracle: base, proxy: base}}
    for index, mean in enumerate(means):
        gains = mean + noise_level * generator.normal(size=prompts)
        values[f"run-{index}"] = {oracle: base + gains, proxy: base + 0.3 * (index + 1)}
    return scored(values, prompts), {100 * (index + 1): f"run-{index}" for index in range(len(means))}


def test_an_over_optimised_run_is_marked_where_it_turned():
    evaluation, steps = curve([0.3, 0.8, 0.5, -0.2])
    found = trajectory(evaluation, "run", steps, proxy=("proxy", "overall"))
    assert found.over_optimised and found.peak == 200 and found.suggested == 200 and found.parted
    assert found.fall.high < -0.5 and "Over-optimised" in found.sentence and "kept up" in found.sentence
    refused = trajectory(evaluation, "run", steps, refused={200: "variety"})
    assert refused.suggested == 300 and not refused.parted
    everything = trajectory(evaluation, "run", steps, refused=dict.fromkeys(steps, "variety"))
    assert everything.suggested is None and "No checkpoint" in everything.sentence


def test_a_run_that_still_rises_is_not_marked():
    found = trajectory(*with_run(curve([0.1, 0.4, 0.7])))
    assert not found.over_optimised and found.suggested == found.peak == 300 and found.fall.value == 0.0


def test_the_highest_of_equal_checkpoints_makes_no_fall():
    """A plateau: the naive fall from the maximum would always be below zero."""
    falls = []
    for seed in range(60):
        gains = np.random.default_rng(seed).normal(size=(6, 100))
        change = cross_fitted_fall(gains)
        falls.append(change.mean() < -1.96 * change.std() / 10)
    assert np.mean(falls) < 0.12


def with_run(pair):
    return pair[0], "run", pair[1]


def test_checkpoints_become_models_once(tmp_path, monkeypatch):
    exported = []

    def export(run, name, target):
        exported.append(name)
        target.mkdir(parents=True)

    monkeypatch.setattr("t2i_align.export.run.export_checkpoint", export)
    run = tmp_path / "run"
    for step in (20, 100):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "trainable.safetensors").write_bytes(b"%d" % step)
    models, steps = checkpoints.expand({"dpo": run}, tmp_path / "eval")
    assert list(models) == ["dpo-20", "dpo-100"] and steps == {"dpo": {"20": "dpo-20", "100": "dpo-100"}}
    checkpoints.expand({"dpo": run}, tmp_path / "eval")
    assert exported == ["checkpoint-20", "checkpoint-100"]
    (run / "checkpoint-20" / "trainable.safetensors").write_bytes(b"another")
    checkpoints.expand({"dpo": run}, tmp_path / "eval")
    assert exported[2:] == ["checkpoint-20"]
    with pytest.raises(UserError, match="too few checkpoints"):
        checkpoints.expand({"none": tmp_path / "nowhere"}, tmp_path)


def test_features_need_a_clip_model():
    assert open_encoder(None, ["oracle"], "cpu") is None
    with pytest.raises(UserError, match="no image features"):
        open_encoder("oracle", [], "cpu")
    with pytest.raises(UserError, match="cannot be used"):
        open_encoder("pickscore=nowhere", [], "cpu")


def test_variety_is_measured_by_a_scorers_clip_model():
    class Scorer:
        name, device = "pickscore", "cpu"

        @staticmethod
        def preprocessor(image):
            return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)

        @staticmethod
        def encode_inputs(inputs):
            return inputs.flatten(1)

    rows = ClipEncoder(Scorer())([noise(0), noise(1), noise(0)])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    assert rows[0] @ rows[2] == pytest.approx(1.0) and rows[0] @ rows[1] < 1.0


def test_the_report_gets_a_page_with_the_turning_point(tmp_path, vae):
    base, rising = levels_of(20, wins=18)
    _, falling = levels_of(20, wins=3)
    evaluation = make_evaluation(tmp_path, {"base": base, "run-1": rising, "run-2": falling}, replicates=300)
    evaluation = Evaluation(
        **{
            **evaluation.__dict__,
            "settings": {**evaluation.settings, "checkpoints": {"run": {"100": "run-1", "200": "run-2"}}},
            "_cache": {},
        }
    )
    assert evaluation.on_trial == "run-2"
    found = measure(evaluation, vae=vae, proxy="brightness:red", device="cpu")
    text = render(evaluation, tmp_path / "report.html", drift=found).read_text()
    assert 'id="drift"' in text and "Over-optimised: from its peak at step 100" in text
    assert 'class="mark"' in text and ">peak, stop</text>" in text
    assert text.index("Over-optimised") < text.index("<nav")  # it stands beside the verdict
    with pytest.raises(UserError, match="not among the scores"):
        measure(evaluation, vae=vae, proxy="pickscore", device="cpu")
