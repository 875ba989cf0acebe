"""Presets that change more than the loss, and mixtures of slots: whole runs on tiny pipelines from plain settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from t2i_align.backbones import load_backbone, trainable_state
from t2i_align.config.loading import load_config
from t2i_align.config.schema import ModelConfig
from t2i_align.data.batch import PairBatch
from t2i_align.errors import UserError
from t2i_align.objectives import build
from t2i_align.training.run import train
from t2i_align.training.step import Draws, PairStep
from tests.tiny import make_sdxl

from .runs import run_settings, start, write_pairs

LOG2 = 0.6931472


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


@pytest.fixture(scope="module")
def tiny_sdxl_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl_v", "v_prediction")


@pytest.mark.parametrize(("preset", "value"), [("ncp_dpo", LOG2), ("dro", 0.001), ("rethinking_dpo", LOG2)])
def test_presets_that_keep_copies_train_whole_denoisers(
    tiny_sdxl: Path, pairs: Path, tmp_path: Path, preset: str, value: float
) -> None:
    objective = {"preset": preset} | ({"num_inference_steps": 4} if preset == "dro" else {})
    first, second = start(tiny_sdxl, pairs, tmp_path, objective, model={"train": "full"})
    assert first["loss"] == pytest.approx(value, abs=2e-6) and second["loss"] != first["loss"]


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("tiny_sdxl", {"preset": "mapo", "error": "perceptual"}),
        ("tiny_sdxl", {"preset": "ipo", "latents": "ddim_inversion"}),
        ("tiny_sd_v", {"preset": "ipo", "latents": {"name": "ddim_inversion", "steps": 3, "renoise": 1}}),
        ("tiny_sdxl_v", {"preset": "kto"}),
        ("tiny_sd_v", {"preset": "ncp_dpo", "weight": "user_balance"}),
        ("tiny_sd_v", {"preset": "dro", "num_inference_steps": 3}),
        ("tiny_sd_v", {"preset": "self_npo"}),
        ("tiny_sdxl", {"preset": "rankdpo", "timestep": {"weighting": "min_snr"}}),
        ("tiny_sd", {"preset": "hinge", "error": "clean", "reference": {"name": "guarded", "every": 1}}),
    ],
)
def test_mixtures_train_by_yaml_alone(
    request: pytest.FixtureRequest, pairs: Path, tmp_path: Path, model: str, objective: dict
) -> None:
    rows = start(request.getfixturevalue(model), pairs, tmp_path, objective)
    assert len(rows) == 2 and all(row["loss"] is not None and row["grad_norm"] is not None for row in rows)


def test_a_mixture_the_model_cannot_have_fails_before_training(tiny_sd: Path, pairs: Path, tmp_path: Path) -> None:
    objective = {"preset": "ncp_dpo", "timestep": {"name": "range", "high": 2000}}
    with pytest.raises(UserError, match="asks for more timesteps"):
        start(tiny_sd, pairs, tmp_path, objective, data={"cache_dir": str(tmp_path / "cache")})
    assert not (tmp_path / "cache").exists()  # nothing was encoded in vain
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_dcpo_without_captions_says_how_to_get_them(tiny_sd: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loser_captions"):
        start(tiny_sd, pairs, tmp_path, {"preset": "dcpo"})


def step_of(model: Path, objective: Any, **options: Any) -> tuple[Any, PairStep]:
    accelerator = Accelerator(cpu=True)
    config = ModelConfig.model_validate({"pretrained_model_name_or_path": str(model), "lora": {"rank": 4}})
    backbone = load_backbone(config, "cpu", torch.float32, needs_features=objective.error.needs_features, **options)
    return backbone, PairStep(backbone, objective, 0, 10, accelerator)


def batch_of(backbone: Any, second_prompt: str | None = None) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    winner, loser = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
    prompt = backbone.encode_prompt(["a red circle", "a blue square"])
    other = None if second_prompt is None else backbone.encode_prompt([second_prompt, second_prompt])
    ids = backbone.time_ids([(64, 64)] * 2, [(0, 0)] * 2, [(64, 64)] * 2)
    ones = torch.ones(2)
    return PairBatch(["a", "b"], [0, 0], winner, loser, prompt, ids, ids, ones, ones, prompt_loser=other)


def test_equal_captions_make_dcpo_dpo_bit_for_bit(tiny_sdxl: Path) -> None:
    objective = build("dcpo", beta=5000)
    backbone, step = step_of(tiny_sdxl, objective)
    for parameter in backbone.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
    batch = batch_of(backbone)
    plain = PairStep(backbone, build("dpo"), 0, 10, Accelerator(cpu=True)).loss(batch, Draws("train", 0), 0)[0]
    batch.prompt_loser = batch.prompt
    assert torch.equal(step.loss(batch, Draws("train", 0), 0)[0].loss, plain.loss)
    other = step.loss(batch_of(backbone, "a green star"), Draws("train", 0), 0)[0]
    assert not torch.equal(other.loss, plain.loss)


def test_gradients_pass_through_the_frozen_features(tiny_sdxl: Path) -> None:
    backbone, step = step_of(tiny_sdxl, build("ncp_sft"), needs_reference=False)
    step.loss(batch_of(backbone), Draws("train", 0), 0)[0].loss.mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.trainable_parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone._encoder.parameters())


def moved(backbone: Any, far: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in backbone.trainable_parameters():
            parameter.add_(far)


def test_a_guarded_reference_follows_until_it_is_too_far(tiny_sdxl: Path) -> None:
    objective = build("rethinking_dpo", reference={"every": 2, "limit": 1e6}, timestep="uniform")
    backbone, step = step_of(tiny_sdxl, objective)
    batch, draws = batch_of(backbone), Draws("train", 0)
    assert step.loss(batch, draws, 0)[0].metrics["logit"].tolist() == [0.0, 0.0]
    moved(backbone)
    kept = {name: value.clone() for name, value in trainable_state(backbone).items()}
    assert (step.loss(batch, draws, 1)[0].metrics["logit"] != 0).all()
    after = step.loss(batch, draws, 2)[0]
    assert after.metrics["logit"].tolist() == [0.0, 0.0] and "reference_divergence" in after.metrics
    assert all(torch.equal(value, kept[name]) for name, value in trainable_state(backbone).items())
    after.loss.mean().backward()  # exchanging weights for the reference pass leaves the graph valid
    state = step.state()
    moved(backbone)
    away = step.loss(batch, draws, 3)[0].metrics["logit"]
    _, fresh = step_of(tiny_sdxl, objective)
    fresh._backbone, fresh._followers._backbone = backbone, backbone
    fresh.restore(state)
    assert torch.equal(fresh.loss(batch, draws, 3)[0].metrics["logit"], away)


def test_the_guard_stops_a_reference_that_went_too_far(tiny_sdxl: Path) -> None:
    objective = build("rethinking_dpo", reference={"every": 1, "limit": 0.01})
    backbone, step = step_of(tiny_sdxl, objective)
    followers, initial = step._followers, torch.tensor([0.10, 0.12])
    assert followers.after_policy(0, initial, lambda: initial) is None and followers.reference is None
    assert followers.after_policy(1, initial + 0.009, lambda: initial).item() == pytest.approx(0.009)
    assert followers.reference == "reference" and not followers.stopped
    kept = dict(backbone.snapshots.state())
    moved(backbone)
    assert followers.after_policy(2, initial + 0.011, lambda: initial).item() == pytest.approx(0.011)
    assert followers.stopped and followers.after_policy(3, initial, lambda: initial) is None
    assert all(torch.equal(value, kept[name]) for name, value in backbone.snapshots.state().items())


def test_resuming_a_run_with_followers_is_exact(tiny_sd: Path, pairs: Path, tmp_path: Path) -> None:
    objective = {"preset": "rethinking_dpo", "reference": {"every": 2, "limit": 100.0}}
    training = {"max_train_steps": 6, "checkpointing_steps": 3, "learning_rate": 1e-3}

    def run(name: str, **more: Any) -> None:
        settings = run_settings(tiny_sd, pairs, tmp_path / name, training=training | more)
        settings["objective"] = objective
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(settings))
        train(load_config(file, []))

    run("whole")
    run("parts", max_train_steps=3)
    run("parts", resume_from_checkpoint="latest")
    ours, theirs = (
        load_file(tmp_path / name / "checkpoint-6" / "trainable.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
