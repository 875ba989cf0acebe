"""The training loop on tiny models: it learns, resumes bit for bit, and reports."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from reward_models import RewardModelError, load
from reward_models.checkpoints import write_random
from reward_models.training.config import RECIPES, training_config
from reward_models.training.data import AddressedBatches, epoch_order
from reward_models.training.loop import learning_rate_factor, train
from reward_models.training.records import PreferenceRecord, prompt_weights
from tests.reward_models.golden import TOKENIZER
from tests.reward_models.layouts import SMALL_HPS_CONFIG, clip_config, mps_config

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def colour_pairs(count, seed=0):
    """The picture whose colour is the prompt's wins; every fifth pair shows two equal pictures and is a tie.

    Dimension `semantic` follows the colour, dimension `aesthetic` prefers the dark picture.
    """
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        word = str(rng.choice(list(COLOURS)))
        first = word if rng.random() < 0.5 else ({*COLOURS} - {word}).pop()
        second = first if index % 5 == 4 else ({*COLOURS} - {first}).pop()
        shades = rng.permutation([1.0, 0.4])
        pictures = []
        for name, shade in zip((first, second), shades, strict=True):
            pixels = np.array(COLOURS[name]) * shade + rng.normal(0, 4, (24, 24, 3))
            pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        label = 0.5 if first == second else float(first == word)
        dark = float(shades[0] < shades[1])
        records.append(PreferenceRecord(word, *pictures, label, {"semantic": label, "aesthetic": dark}))
    return records


def tiny_clip_config(size=32):
    config = clip_config()
    config["vision_config"] |= {"image_size": size, "hidden_size": 32, "intermediate_size": 64}
    return config


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps one precision per process; another test may have chosen another."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_random("pickscore", tmp_path_factory.mktemp("start") / "m", tiny_clip_config(), TOKENIZER, seed=1)


def configuration(start, output, **changes):
    settings = {
        "checkpoint": str(start),
        "output_dir": output,
        "train_batch_size": 8,
        "max_train_steps": 6,
        "learning_rate": 2e-3,
        "weight_decay": 0.0,
        "lr_warmup_steps": 0,
        "validation_steps": 3,
        "checkpointing_steps": 3,
    }
    return training_config(settings | changes)


def test_learns_a_simple_preference(start, tmp_path):
    held_out = colour_pairs(40, seed=9)
    config = configuration(start, tmp_path / "run", max_train_steps=40, validation_steps=20, checkpointing_steps=40)
    result = train(config, colour_pairs(160), held_out)
    assert result.report["best"]["overall"]["accuracy"] > 0.9
    assert result.report["final"]["overall"]["expected_calibration_error"] < 0.3
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    # The saved scorer is an ordinary one, and says what training said.
    scorer = load("pickscore", result.best, "cpu")
    untied = [record for record in held_out if record.label_a != 0.5]
    prompts = [record.prompt for record in untied]
    margin = scorer.score(prompts, [r.image_a for r in untied]) - scorer.score(prompts, [r.image_b for r in untied])
    right = (margin > 0) == torch.tensor([record.label_a == 1 for record in untied])
    assert float(right.float().mean()) == pytest.approx(result.report["best"]["overall"]["accuracy"])


def test_starts_from_random_weights_and_leaves_report_and_plot(tmp_path):
    settings = {"checkpoint": None, "model_config": tiny_clip_config(), "tokenizer": str(TOKENIZER)}
    settings |= {"max_train_steps": 2, "validation_steps": 2, "save_dtype": "float16"}
    records = colour_pairs(12)
    results = [train(configuration(None, tmp_path / name, **settings), records, records) for name in ("one", "two")]
    first, second = (load_file(result.final / "model.safetensors") for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {value.dtype for value in first.values() if value.is_floating_point()} == {torch.float16}
    assert load("pickscore", results[0].final, "cpu").score("red", [records[0].image_a]).isfinite().all()
    report = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert report["best"]["overall"]["pairs"] == 12 and report["best"]["overall"]["reliability"]
    assert Image.open(tmp_path / "one" / "calibration.png").size == (420, 420)


def test_of_equal_accuracies_the_lowest_log_loss_is_best(start, tmp_path):
    config = configuration(start, tmp_path / "run", max_train_steps=40, validation_steps=4, checkpointing_steps=40)
    result = train(config, colour_pairs(160), colour_pairs(12, seed=9))
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in rows if "validation_accuracy" in row]
    highest = max(row["validation_accuracy"] for row in seen)
    equals = [row for row in seen if row["validation_accuracy"] == highest]
    lowest = min(equals, key=lambda row: row["overall/log_loss"])
    assert lowest is not equals[0], "the case under test must occur"
    assert result.report["best"]["step"] == lowest["step"]


def test_held_out_ties_alone_still_give_a_best_scorer(start, tmp_path):
    ties = [record for record in colour_pairs(20) if record.label_a == 0.5]
    result = train(configuration(start, tmp_path / "run", max_train_steps=2, validation_steps=1), ties, ties)
    assert result.best.is_dir() and math.isnan(result.report["best"]["overall"]["accuracy"])


def test_random_weights_need_a_model_config(tmp_path):
    with pytest.raises(RewardModelError, match="need a model_config"):
        configuration(None, tmp_path / "run", checkpoint=None)


def test_resume_is_bit_for_bit(start, tmp_path):
    records = colour_pairs(21)  # not a multiple of the batch: an epoch ends inside a batch
    whole = train(configuration(start, tmp_path / "whole", gradient_accumulation_steps=2), records)
    config = configuration(start, tmp_path / "cut", gradient_accumulation_steps=2)
    train(config, records)
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    shutil.rmtree(tmp_path / "cut" / "final")
    again = configuration(start, tmp_path / "cut", gradient_accumulation_steps=2, resume_from_checkpoint="latest")
    resumed = train(again, records)
    first, second = (load_file(result.final / "model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [json.loads(row)["step"] for row in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_resume_refuses_other_settings_and_fresh_starts_refuse_old_folders(start, tmp_path):
    records = colour_pairs(16)
    train(configuration(start, tmp_path / "run"), records)
    assert [p.name for p in sorted((tmp_path / "run").glob("checkpoint-*"))] == ["checkpoint-3", "checkpoint-6"]
    with pytest.raises(RewardModelError, match="not empty"):
        train(configuration(start, tmp_path / "run"), records)
    with pytest.raises(RewardModelError, match=r"learning_rate: 0.002 then, 0.5 now"):
        train(configuration(start, tmp_path / "run", learning_rate=0.5, resume_from_checkpoint="latest"), records)
    with pytest.raises(RewardModelError, match="does not exist"):
        train(configuration(start, tmp_path / "new", resume_from_checkpoint=str(tmp_path / "absent")), records)
    with pytest.raises(RewardModelError, match="later checkpoints"):
        early = str(tmp_path / "run/checkpoint-3")
        train(configuration(start, tmp_path / "run", resume_from_checkpoint=early), records)


def test_an_interrupted_first_stretch_starts_again_but_never_deletes(start, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for resume in (None, "latest"):
        with pytest.raises(RewardModelError, match="not empty"):
            train(configuration(start, tmp_path / "mine", resume_from_checkpoint=resume), colour_pairs(8))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"

    def stop(step, steps, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(configuration(start, tmp_path / "run"), colour_pairs(16), progress=stop)
    train(configuration(start, tmp_path / "run", resume_from_checkpoint="latest"), colour_pairs(16))
    rows = [json.loads(row)["step"] for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_mps_learns_two_dimensions_that_contradict_each_other(tmp_path):
    """Semantic follows the prompt's colour, aesthetic the dark picture; every third pair lacks the second label."""
    config = mps_config()
    config["clip"]["vision_config"] |= {"image_size": 32, "hidden_size": 32, "intermediate_size": 64}
    config["cross"]["layer_num"] = 1
    start = write_random("mps", tmp_path / "start", config, TOKENIZER, seed=2)

    def sentences(records):
        for index, r in enumerate(records):
            labels = dict(r.dimension_labels) if index % 3 else {"semantic": r.label_a}
            prompt = f"a {r.prompt} picture with some light"
            yield PreferenceRecord(prompt, r.image_a, r.image_b, r.label_a, labels)

    settings = {
        "scorer": "mps",
        "loss": "mps",
        "conditions": {"semantic": "semantic", "aesthetic": "light, tone"},
        "mask_threshold": 0.7,
        "mask_temperature": 0.1,
        "max_train_steps": 120,
        "validation_steps": 120,
        "checkpointing_steps": 120,
    }
    held_out = list(sentences(colour_pairs(40, seed=9)))
    run = configuration(start, tmp_path / "run", **settings)
    report = train(run, list(sentences(colour_pairs(160))), held_out).report["final"]
    assert (report["semantic"]["pairs"], report["aesthetic"]["pairs"]) == (40, 26)
    assert report["semantic"]["accuracy"] > 0.85
    assert report["aesthetic"]["accuracy"] > 0.85
    scorer = load("mps:aesthetic", tmp_path / "run" / "final", "cpu")  # named as it was trained
    assert scorer.condition == "light, tone" and scorer.name == "mps:aesthetic"
    assert scorer.model.mask_threshold == 0.7 and "mask_threshold" not in scorer.version
    dark, bright = (Image.new("RGB", (24, 24), tuple(int(s * c) for c in COLOURS["red"])) for s in (0.4, 1.0))
    assert float(scorer.compare("a red picture with some light", [dark, bright])[0]) > 0.5


def test_conditions_that_read_alike_are_refused(tmp_path):
    start = write_random("mps", tmp_path / "start", mps_config(), TOKENIZER)
    conditions = {"overall": "light, " * 60 + "tone", "aesthetic": "light, " * 60 + "shade"}
    run = configuration(start, tmp_path / "run", scorer="mps", loss="mps", conditions=conditions)
    with pytest.raises(RewardModelError, match="the same words"):
        train(run, colour_pairs(8))


@pytest.mark.parametrize(
    ("scorer", "changes"),
    [
        ("hpsv2.1", {"loss": "hps", "max_logit_scale": 10.0, "learning_rate": 0.05, "decay_gains_and_biases": False}),
        ("hpsv2.1", {"loss": "hps", "trainable_text_blocks": 1, "trainable_image_blocks": 0}),
        ("pickscore", {"in_batch_negatives": True, "trainable_text_blocks": 0, "trainable_image_blocks": 1}),
    ],
)
def test_options_do_what_they_say(start, tmp_path, scorer, changes):
    if scorer != "pickscore":
        start = write_random(scorer, tmp_path / "start", SMALL_HPS_CONFIG, TOKENIZER)
    result = train(
        configuration(start, tmp_path / "run", scorer=scorer, max_train_steps=3, **changes), colour_pairs(24)
    )
    before, after = load_file(start / "model.safetensors"), load_file(result.final / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name not in changed}
    if "max_logit_scale" in changes:
        assert not frozen
        assert math.log(8.0) < float(after["logit_scale"]) <= math.log(10.0) + 1e-6 < float(before["logit_scale"])
    elif scorer == "hpsv2.1":
        assert {"token_embedding.weight", "positional_embedding", "visual.conv1.weight"} <= frozen
        assert not any("transformer.resblocks.0" in name for name in changed)
        assert "transformer.resblocks.1.mlp.c_fc.weight" in changed and "visual.proj" in changed
        assert not any(name.startswith("visual.transformer") for name in changed)
    else:
        assert not any("text_model.encoder" in name or "embeddings" in name for name in changed)
        assert not any("vision_model.encoder.layers.0" in name for name in changed)
        assert "vision_model.encoder.layers.1.mlp.fc1.weight" in changed


def test_workers_and_bytes_give_the_same_run(start, tmp_path):
    """Pictures as encoded bytes, decoded in a worker process."""
    import io

    def png(image):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()

    records = colour_pairs(16)
    encoded = [PreferenceRecord(r.prompt, png(r.image_a), png(r.image_b), r.label_a) for r in records]
    one = train(configuration(start, tmp_path / "one", max_train_steps=2), records)
    two = train(configuration(start, tmp_path / "two", max_train_steps=2, dataloader_num_workers=1), encoded)
    first, second = (load_file(result.final / "model.safetensors") for result in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("scorer", ["pickscore", "mps", "hpsv2"])
def test_bf16_stays_close_to_float32(tmp_path, scorer):
    """Towers in bf16, cosines and losses in float32: the first loss differs by rounding only."""
    settings = {"scorer": scorer, "max_train_steps": 1, "loss": {"hpsv2": "hps"}.get(scorer, scorer)}
    configs = {"pickscore": clip_config(), "hpsv2": SMALL_HPS_CONFIG, "mps": mps_config()}
    settings |= {"mps": {"mask_temperature": 0.1}, "pickscore": {"in_batch_negatives": True}}.get(scorer, {})
    start = write_random(scorer, tmp_path / "start", configs[scorer], TOKENIZER, seed=1)
    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(True)
        run = configuration(start, tmp_path / precision, mixed_precision=precision, **settings)
        train(run, colour_pairs(8))
        losses[precision] = json.loads((tmp_path / precision / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)


def test_broken_data_names_the_pair(start, tmp_path):
    records = colour_pairs(8)
    broken = [*records[:7], PreferenceRecord("red", b"", records[7].image_b, 1.0)]
    with pytest.raises(RewardModelError, match=r"pair 7: the image is empty"):
        train(configuration(start, tmp_path / "run"), broken)
    with pytest.raises(RewardModelError, match="label must lie"):
        PreferenceRecord("red", b"", b"", 1.5)
    with pytest.raises(RewardModelError, match="no pairs"):
        train(configuration(start, tmp_path / "none"), [])


def test_order_is_a_function_of_seed_and_position():
    """Two processes together read what one would; a later start continues; every epoch is a permutation."""
    whole = [i for batch in AddressedBatches(10, 4, seed=3, start=0, stop=10) for i in batch]
    assert sorted(whole[:10]) == sorted(whole[10:20]) == list(range(10))
    assert whole[:10] != whole[10:20]
    halves = [list(AddressedBatches(10, 2, 3, 0, 10, rank, 2)) for rank in (0, 1)]
    together = [i for a, b in zip(*halves, strict=True) for i in (*a, *b)]
    assert together == whole
    later = [i for batch in AddressedBatches(10, 4, seed=3, start=6, stop=10) for i in batch]
    assert later == whole[24:]
    assert epoch_order(10, 3, 0).tolist() != epoch_order(10, 4, 0).tolist()


def test_learning_rate_schedules():
    def rates(**changes):
        config = training_config({"checkpoint": "x", "output_dir": "y", "max_train_steps": 10, **changes})
        factor = learning_rate_factor(config)
        return [round(factor(step), 6) for step in range(10)]

    assert rates(lr_warmup_steps=2) == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert rates(lr_warmup_steps=0, lr_scheduler="constant") == [1.0] * 10
    cosine = rates(lr_warmup_steps=0, lr_scheduler="cosine")
    assert cosine[0] == 1.0 and cosine[5] == 0.5 and cosine == sorted(cosine, reverse=True)


def test_configuration_is_strict():
    base = {"checkpoint": "x", "output_dir": "y"}
    for name in RECIPES:
        assert training_config({**base, "recipe": name}).max_train_steps == 4000
    for wrong, message in [
        ({"learning_rte": 1}, "learning_rte: Extra inputs"),
        ({"in_batch_negatives": True, "scorer": "hpsv2", "loss": "hps"}, "not read by loss 'hps'"),
        ({"conditions": {"a": "b"}}, "not read by loss 'pickscore'"),
        ({"scorer": "mps"}, "belongs to scorer 'mps'"),
        ({"recipe": "magic"}, "unknown recipe"),
        ({"lr_warmup_steps": 5000}, "exceeds max_train_steps"),
    ]:
        with pytest.raises(RewardModelError, match=message):
            training_config({**base, **wrong})
    with pytest.raises(RewardModelError, match=r"seed: .*; learning_rate: "):
        training_config({**base, "learning_rate": -1, "seed": "x"})


def test_prompt_weights():
    assert prompt_weights(["a", "b", "a", "a"]) == [
        pytest.approx(1 / 3),
        1.0,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    ]
