"""Checkpoints: complete or absent, limited, and refused where they would mix two runs."""

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.objectives import resolve
from t2i_align.training.checkpoints import (
    TrainState,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from t2i_align.training.identity import settings_identity
from t2i_align.training.resuming import resolve_resume
from t2i_align.training.run import train

from .runs import run_config, write_pairs


def make_state(seed: int = 0, width: int = 3) -> TrainState:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    layer(torch.randn(4, width)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return TrainState(dict(layer.named_parameters()), optimizer, scheduler, ema={"w": torch.ones(2)}, ema_step=5)


def test_a_checkpoint_restores_everything(tmp_path):
    saved, fresh = make_state(0), make_state(1)
    save_checkpoint(tmp_path, 7, saved, {"seed": 1}, limit=None)
    fresh.ema["w"].zero_()
    assert load_checkpoint(tmp_path / "checkpoint-7", fresh, {"seed": 1}) == 7
    for name, tensor in saved.trainable.items():
        assert torch.equal(fresh.trainable[name], tensor)
    assert torch.equal(fresh.ema["w"], torch.ones(2)) and fresh.ema_step == 5
    assert fresh.scheduler.last_epoch == 1
    moments = [state["exp_avg"] for state in fresh.optimizer.state_dict()["state"].values()]
    expected = [state["exp_avg"] for state in saved.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, expected, strict=True))


def test_the_oldest_go_beyond_the_limit(tmp_path):
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, make_state(), {}, limit=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [10, 100]


def test_a_folder_half_written_by_a_kill_is_never_a_checkpoint(tmp_path):
    (tmp_path / ".checkpoint-3.writing").mkdir()
    (tmp_path / "checkpoint-4").mkdir()
    assert list_checkpoints(tmp_path) == []
    assert resolve_resume(tmp_path, "latest") is None


def test_another_architecture_is_refused_with_names_and_shapes(tmp_path):
    save_checkpoint(tmp_path, 1, make_state(), {}, limit=None)
    with pytest.raises(UserError, match=r"weight: \(2, 3\) in the file, \(2, 4\) in the model"):
        load_checkpoint(tmp_path / "checkpoint-1", make_state(width=4), {})


def test_another_run_is_refused(tmp_path):
    save_checkpoint(tmp_path, 1, make_state(), {"seed": 1}, limit=None)
    with pytest.raises(UserError, match="seed: 1 then, 2 now"):
        load_checkpoint(tmp_path / "checkpoint-1", make_state(), {"seed": 2})


def test_other_settings_are_refused_before_a_model_is_loaded(tmp_path):
    latest = {"resume_from_checkpoint": "latest"}
    config = run_config(tmp_path / "no-model", write_pairs(tmp_path / "pairs.parquet"), tmp_path, training=latest)
    identity = settings_identity(config, resolve(config.objective), num_processes=1)
    save_checkpoint(tmp_path, 1, make_state(), {**identity, "effective_batch": 64, "pairs": "abc"}, limit=None)
    with pytest.raises(UserError, match="effective_batch: 64 then, 2 now"):
        train(config)
    save_checkpoint(tmp_path, 2, make_state(), {**identity, "pairs": "abc"}, limit=None)
    with pytest.raises(UserError, match="no-model"):  # the next thing that is looked at
        train(config)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, make_state(), {}, limit=None)
    data = (path / "trainable.safetensors").read_bytes()
    (path / "trainable.safetensors").write_bytes(data[:20])
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path, make_state(), {})
    (path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path, make_state(), {})


def test_a_fresh_run_never_overwrites_another(tmp_path):
    save_checkpoint(tmp_path, 1, make_state(), {}, limit=None)
    with pytest.raises(UserError, match="already holds a run"):
        resolve_resume(tmp_path, None)
    assert resolve_resume(tmp_path, "latest") == tmp_path / "checkpoint-1"
    assert resolve_resume(tmp_path, "checkpoint-1") == tmp_path / "checkpoint-1"
    with pytest.raises(UserError, match="No such checkpoint"):
        resolve_resume(tmp_path, "checkpoint-2")
