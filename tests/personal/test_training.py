"""Personal runs: what is trained, whose answers count, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i_align.config.loading import config_from_values
from t2i_align.errors import UserError
from t2i_align.export import export_checkpoint
from t2i_align.personal import load_personal
from t2i_align.personal.crowd import BalancedOrder, split_users
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

from ..training.runs import run_settings, write_pairs
from .common import load, picture

PERSONAL = {"encoder": "pair_set", "num_tokens": 2, "token_width": 8, "hidden": 16, "features": "pixels"}
PERSONAL |= {"encoder_steps": 2}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet", count=24)


def settings(folder: Path, pairs: Path, output_dir: Path, personal: dict, **sections: dict) -> dict:
    values = run_settings(folder, pairs, output_dir, model={"train": "user"}, personal=personal, **sections)
    del values["model"]["lora"]
    return values


def run(folder: Path, pairs: Path, output_dir: Path, personal: dict, **sections: dict) -> Path:
    train(config_from_values(settings(folder, pairs, output_dir, personal, **sections), "test"))
    return output_dir


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_run_trains_the_adapter_alone_and_plain_diffusers_loads_it(kind, tiny_sd, tiny_sdxl, pairs, tmp_path):
    folder = {"sd": tiny_sd, "sdxl": tiny_sdxl}[kind]
    personal = {**PERSONAL, "heldout_users": 0.3}
    validation = {"validation_prompts": ["a red circle"], "num_inference_steps": 1, "heldout_draws": 1}
    out = run(folder, pairs, tmp_path / "run", personal, validation=validation)
    trained = load_file(out / "checkpoint-4/trainable.safetensors")
    assert trained and all(name.startswith("personal.") for name in trained)
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # step 0: policy and reference are the same network
    held_out = [row["heldout/margin"] for row in rows if "heldout/margin" in row]
    assert held_out and held_out[-1] != 0.0  # measured for its users against the base, not against itself
    assert any(path.name.startswith("step-4-user-") for path in (out / "samples").glob("*.png"))

    base, tuned = load(folder, kind), load(folder, kind)
    adapted = load_personal(tuned, out / "export")
    assert torch.equal(picture(base), picture(tuned))
    vectors = torch.randn(3, adapted.adapter.config.features), torch.randn(3, adapted.adapter.config.features)
    adapted.add_pairs("anna", *vectors, torch.randn(3, adapted.adapter.config.caption_features))
    with adapted.user("anna"):
        assert not torch.equal(picture(base), picture(tuned))
    assert adapted.adapter.config.extractor == "pixels"
    card = (out / "export/README.md").read_text()
    assert "load_personal" in card and "A user adapter" in card and "pair_set" in card


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_resumed_run_is_the_unbroken_one(kind, tiny_sd, tiny_sdxl, pairs, tmp_path):
    folder = {"sd": tiny_sd, "sdxl": tiny_sdxl}[kind]
    whole = run(folder, pairs, tmp_path / "whole", PERSONAL)
    cut = run(folder, pairs, tmp_path / "cut", PERSONAL, training={"max_train_steps": 2})
    shutil.rmtree(cut / "features")  # made again, with the same numbers
    run(folder, pairs, cut, PERSONAL, training={"resume_from_checkpoint": "latest"})
    ours, theirs = (load_file(out / "checkpoint-4/trainable.safetensors") for out in (whole, cut))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = {**PERSONAL, "support_pairs": 2}
    with pytest.raises(UserError, match="different run"):
        run(folder, pairs, cut, other, training={"resume_from_checkpoint": "latest", "max_train_steps": 6})
    exported = export_checkpoint(whole, "checkpoint-2", tmp_path / "early")
    early = load_file(exported / "personal_weights.safetensors")
    saved = load_file(whole / "checkpoint-2/trainable.safetensors")
    assert all(torch.equal(early[name.replace("personal.", "adapter.", 1)], value) for name, value in saved.items())


@pytest.mark.parametrize("preset", ["sft", "kto", "mapo", "ipo", "rethinking_dpo"])
def test_any_preset_of_pairs_trains_on_users(preset, tiny_sd, pairs, tmp_path):
    table = {"encoder": "table", "num_tokens": 2, "token_width": 8}
    objective = {"preset": preset, "beta": 1.0}
    values = settings(tiny_sd, pairs, tmp_path / "run", table, training={"max_train_steps": 2})
    values["objective"] = objective if preset != "sft" else {"preset": preset}
    train(config_from_values(values, "test"))
    weights = load_file(tmp_path / "run/export/personal_weights.safetensors")
    assert weights["adapter.encoder.table"].shape == (3, 2, 8)
    assert any(value.abs().max() > 0 for name, value in weights.items() if name.endswith("value.weight"))


def test_arrays_made_elsewhere(tiny_sd, pairs, tmp_path):
    arrays = {str(user): torch.randn(3, 5) for user in range(3)}
    save_file(arrays, tmp_path / "users.safetensors")
    external = {"encoder": "external", "token_width": 8, "users_file": str(tmp_path / "users.safetensors")}
    run(tiny_sd, pairs, tmp_path / "run", {**external, "heldout_users": 0.3}, training={"max_train_steps": 1})
    save_file({"0": arrays["0"]}, tmp_path / "few.safetensors")
    few = {**external, "users_file": str(tmp_path / "few.safetensors")}
    with pytest.raises(UserError, match="Some users have no embedding"):
        run(tiny_sd, pairs, tmp_path / "few", few)


def test_reward_weights_decide_who_wins(tiny_sd, pairs, tmp_path):
    from accelerate import Accelerator

    from t2i_align.backbones import load_backbone
    from t2i_align.objectives import resolve
    from t2i_align.personal.build import build_personal

    table = pq.read_table(pairs)
    sign = [1.0 - 2.0 * (row // 2 % 2) for row in range(len(table))]
    marked = tmp_path / "margins.parquet"
    rewards = {"encoder": "reward_vector", "num_tokens": 2, "token_width": 8, "rewards": ["clear", "dull"]}
    rows = [{**row, "margins": {"clear": s, "dull": -s}} for row, s in zip(table.to_pylist(), sign, strict=True)]
    pq.write_table(type(table).from_pylist(rows), marked)
    config = config_from_values(settings(tiny_sd, marked, tmp_path / "run", rewards), "test")
    assert config.personal is not None
    accelerator = Accelerator(cpu=True)
    backbone = load_backbone(config.model, "cpu", torch.float32)
    parts = build_personal(config, config.personal, backbone, resolve(config.objective), accelerator)
    assert parts.provider.reward_users is not None
    seen = set()
    for step in range(4):
        batch = parts.provider.batch(step, 0)
        weights = parts.provider.reward_users.weights(batch, "train")
        assert torch.allclose(weights.sum(1), torch.ones(len(batch)))
        for row in range(len(batch)):  # the winner is what the heavier of two opposite rewards prefers
            assert (batch.margins["clear"][row] > 0) == (weights[row, 0] > weights[row, 1])
            seen.add(bool(weights[row, 0] > weights[row, 1]))
        assert torch.allclose(batch.weights, (weights[:, 0] - weights[:, 1]).abs())  # in units of the margins' size, 1
    assert seen == {True, False} and (batch.preferred == 1).all()
    with pytest.raises(UserError, match="no margins"):
        run(tiny_sd, pairs, tmp_path / "none", rewards)


def test_every_user_has_the_same_say():
    order = BalancedOrder({"a": [0], "b": [1, 2, 3], "c": [4, 5]}, seed=1)
    drawn = [order.at(position) for position in range(18)]
    owner = {0: "a", 1: "b", 2: "b", 3: "b", 4: "c", 5: "c"}
    for start in range(0, 18, 3):
        assert {owner[row] for row, _ in drawn[start : start + 3]} == {"a", "b", "c"}
    assert sorted(row for row, epoch in drawn if row in (1, 2, 3) and epoch == 0) == [1, 2, 3]
    assert {epoch for row, epoch in drawn if row == 0} == set(range(6))


def test_users_are_split_whatever_their_number():
    pairs = {str(user): [user] for user in range(20)}
    training, heldout = split_users(pairs, 0.25)
    assert len(heldout) == 5 and not set(training) & set(heldout) and {**training, **heldout} == pairs
    with pytest.raises(UserError, match="Too few users"):
        split_users({"a": [0]}, 0.5)


def test_pairs_of_nobody_are_refused(tiny_sd, pairs, tmp_path):
    table = pq.read_table(pairs)
    rows = [{**row, "user_id": None if number < 2 else row["user_id"]} for number, row in enumerate(table.to_pylist())]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), tmp_path / "nobody.parquet")
    with pytest.raises(UserError, match="2 of 24 pairs"):
        run(tiny_sd, tmp_path / "nobody.parquet", tmp_path / "run", PERSONAL)
    once = [{**row, "user_id": number} for number, row in enumerate(table.to_pylist())]
    pq.write_table(type(table).from_pylist(once, schema=table.schema), tmp_path / "once.parquet")
    with pytest.raises(UserError, match="can be shown"):
        run(tiny_sd, tmp_path / "once.parquet", tmp_path / "run2", PERSONAL)


@pytest.mark.parametrize(
    ("personal", "sections", "message"),
    [
        ({**PERSONAL, "features": None}, {}, "needs features"),
        ({**PERSONAL, "hidden": 10}, {}, "multiple of 4"),
        ({**PERSONAL, "rewards": ["a"]}, {}, "does not read it"),
        ({"encoder": "table", "heldout_users": 0.5}, {}, "does not read it"),
        ({**PERSONAL, "heldout_users": 0.5}, {"data": {"heldout_fraction": 0.1}}, "already says"),
        ({**PERSONAL, "heldout_users": 0.5}, {"data": {"shuffle_labels": True}}, "control would shuffle"),
        (PERSONAL, {"model": {"train": "full"}}, "only that is trained"),
        (PERSONAL, {"model": {"train": "user", "lora": {"rank": 4}}}, "the network without it"),
        (PERSONAL, {"objective": {"preset": "rankdpo"}}, "not of lists"),
        (PERSONAL, {"objective": {"preset": "inpo"}}, "made without a user"),
    ],
)
def test_contradictions_are_named_before_anything_is_loaded(personal, sections, message, pairs, tmp_path):
    values = settings(tmp_path, pairs, tmp_path / "run", personal)
    for name, given in sections.items():
        values[name] = given if name == "objective" else {**values[name], **given}
    with pytest.raises(UserError, match=message):
        config_from_values(values, "test")
    with pytest.raises(UserError, match="user trains what"):
        config_from_values({**values, "personal": None, "model": {**values["model"], "train": "user"}}, "test")


def test_the_resolved_file_says_what_was_read(tiny_sd, pairs, tmp_path):
    from t2i_align.config.loading import resolved

    values = resolved(config_from_values(settings(tiny_sd, pairs, tmp_path, PERSONAL), "test"))
    assert values["personal"]["support_pairs"] == 4 and "rewards" not in values["personal"]
    assert json.dumps(values["model"]).count("lora") == 0
