"""The estimate before training, against what the same step holds when it really runs; and what is chosen by it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from t2i_align.backbones import load_backbone
from t2i_align.config import rules
from t2i_align.errors import UserError
from t2i_align.training import memory
from t2i_align.training.memory import Rows, Shares, estimate, plan_memory
from t2i_align.training.meter import Meter
from t2i_align.training.run import train
from t2i_align.training.sharding import Request, gathered_bytes

from .runs import run_config, write_pairs

COUNT = 4
ROWS = Rows(COUNT)


def prepared(folder: Path, tmp_path: Path, **model):
    config = run_config(folder, tmp_path / "pairs.parquet", tmp_path / "run", model={"lora": {"rank": 4}, **model})
    torch.manual_seed(0)
    return config, load_backbone(config.model, torch.device("cpu"), torch.float32)


def run_for_real(backbone, side: int) -> int:
    """Peak bytes of tensors in a real policy pass with backward."""
    noisy = torch.randn(COUNT, 4, side, side)
    prompt, ids = (
        backbone.empty_prompt(COUNT),
        backbone.time_ids([(32, 32)] * COUNT, [(0, 0)] * COUNT, [(32, 32)] * COUNT),
    )
    known = [*backbone.unet.parameters(), *backbone.unet.buffers(), noisy, prompt.hidden]
    with Meter(known) as meter:
        backbone.predict(noisy, torch.arange(COUNT), prompt, ids).square().mean().backward()
    backbone.unet.zero_grad(set_to_none=True)
    return meter.peak


@pytest.mark.parametrize("model", [{}, {"train": "full"}, {"gradient_checkpointing": True}])
def test_the_estimate_is_what_the_step_holds(tiny_sdxl, tmp_path, model):
    config, backbone = prepared(tiny_sdxl, tmp_path, **model)
    expected = estimate(config, backbone, ROWS)
    assert 0.95 < expected.step / run_for_real(backbone, 8) < 1.15
    trained = sum(p.numel() for p in backbone.trainable_parameters())
    weights = 4 * sum(p.numel() for p in backbone.unet.parameters())
    assert expected.optimizer == 8 * trained
    assert expected.weights == weights * (2 if model == {"train": "full"} else 1)  # and the reference's copy
    assert all(p.grad is None for p in backbone.trainable_parameters())


def test_shares_of_what_several_processes_divide(tiny_sdxl, tmp_path):
    config, backbone = prepared(tiny_sdxl, tmp_path, train="full", gradient_checkpointing=True)
    alone = estimate(config, backbone, ROWS)
    frees, keeps = (Request(("BasicTransformerBlock", "ResnetBlock2D"), reshard) for reshard in (True, False))
    shared = estimate(config, backbone, ROWS, Shares(4, frees))
    assert shared.weights == alone.weights // 4 and shared.optimizer == alone.optimizer // 4
    trained = sum(p.numel() for p in backbone.trainable_parameters())
    whole, part = gathered_bytes(backbone, keeps), gathered_bytes(backbone, frees)
    assert whole == 4 * trained and 0 < part < whole
    without_gradients = shared.step - trained - part  # a quarter of 4 bytes each
    assert without_gradients < alone.step - 2 * trained  # which ended with most gradients, and few activations
    assert estimate(config, backbone, ROWS, Shares(4, keeps)).step - shared.step == whole - part


def test_auto_recomputes_as_little_as_fits(tiny_sdxl, tmp_path):
    config, backbone = prepared(tiny_sdxl, tmp_path, gradient_checkpointing="auto")
    free = estimate(config, backbone, ROWS)
    backbone.unet.enable_gradient_checkpointing()
    least = estimate(config, backbone, ROWS)
    backbone.unet.disable_gradient_checkpointing()
    assert least.total < free.total
    switches = [m for m in backbone.unet.modules() if hasattr(m, "gradient_checkpointing")]
    chosen = {}
    for limit in (free.total, (free.total + least.total) / 2, least.total):
        config.model.memory_limit_gb = limit / 1e9 * (1 + 1e-9)
        sentence = plan_memory(config, backbone, ROWS)
        chosen[limit] = sum(m.gradient_checkpointing for m in switches)
        assert f"recomputes {chosen[limit]} of {len(switches)} blocks" in sentence
        assert estimate(config, backbone, ROWS).total <= limit * (1 + 1e-9)
    none, some, most = chosen.values()
    assert none == 0 < some < most
    config.model.memory_limit_gb = 0.9 * least.total / 1e9
    with pytest.raises(UserError, match="does not fit into memory") as caught:
        plan_memory(config, backbone, ROWS)
    assert "train_batch_size" in caught.value.fix


def test_recomputed_blocks_change_no_number(tiny_sdxl, tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.parquet", count=4)
    losses = []
    for name, model in (("plain", {}), ("auto", {"gradient_checkpointing": "auto", "memory_limit_gb": 1.0})):
        config = run_config(tiny_sdxl, pairs, tmp_path / name, model=model, training={"max_train_steps": 2})
        train(config)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([line.split('"seconds"')[0] for line in rows])
    assert losses[0] == losses[1]
    said = capsys.readouterr().err
    assert "memory of a step: " in said and "memory: at most " in said


def test_a_limit_without_a_choice_is_refused(tiny_sdxl, tmp_path):
    config, _ = prepared(tiny_sdxl, tmp_path, memory_limit_gb=3.0)
    assert [p.path for p in rules.violations(config)] == ["model.memory_limit_gb"]


def test_attention_is_counted_on_every_device():
    query, key = torch.randn(2, 3, 16, 8, requires_grad=True), torch.randn(2, 3, 77, 8, requires_grad=True)
    with Meter([query, key]) as meter:
        result = torch.nn.functional.scaled_dot_product_attention(query, key, key)
        forward = 2 * 2 * (2 * 3 * 16 * 77 * 8)  # queries with keys, weights with values
        assert meter.flops == forward
        result.sum().backward()
    assert meter.flops == 3.5 * forward  # five products backward, one of them again


def test_a_system_without_posix_is_asked_for_its_own_peak(monkeypatch):
    """`resource` does not exist on Windows, where psutil knows the most that a process ever had."""
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7_000))
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory.psutil, "Process", lambda: process)
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails
    assert memory.measured_bytes(torch.device("cpu")) == 7_000
