"""Nothing in a step makes the host wait for the device: no value is read back while it is being queued."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from t2i_align import objectives
from t2i_align.backbones import load_backbone
from t2i_align.training.datasets import offline_provider
from t2i_align.training.step import Draws, PairStep
from t2i_align.training.summary import StepSummary

from .runs import run_config, write_pairs

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")


class Reads(TorchDispatchMode):
    """Notes every operation that would copy from a GPU and wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._overloadpacket.__name__
        if name in READS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["dpo", "mapo", "kto"])
def test_a_step_reads_nothing_back(tiny_sdxl, tmp_path, preset):
    config = run_config(
        tiny_sdxl, write_pairs(tmp_path / "pairs.parquet", count=4), tmp_path / "run", objective={"preset": preset}
    )
    accelerator, objective = Accelerator(cpu=True), objectives.resolve(config.objective)
    backbone = load_backbone(config.model, accelerator.device, torch.float32)
    batch = offline_provider(config, backbone, objective, accelerator).batch(0, 0)
    step, summary = PairStep(backbone, objective, 0, 1, accelerator), StepSummary(accelerator)
    with Reads() as reads:
        output, timesteps = step.loss(batch, Draws("train", 0), 0)
        output.loss.mean().backward()
        summary.add(output, timesteps)
        torch.nn.utils.clip_grad_norm_(backbone.trainable_parameters(), 1.0)
    assert reads.found == []
    with reads:
        summary.flush()
    assert reads.found  # the log reads, once for all it has collected
