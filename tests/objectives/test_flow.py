"""Flow-matching backbones fit the slots: a toy one trains through the step and the loop as they are, with every link.

What it needs beyond a backbone is one timestep choice, which a file of one's own brings along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.data.batch import PairBatch
from t2i_align.objectives import Objective, build, snr_table
from t2i_align.training.loop import Hooks, Loop
from t2i_align.training.step import Draws, PairStep
from tests.objectives.golden import TENSORS

STEPS = 1000
OWN = """
from statistics import NormalDist
from typing import Literal

from t2i_align.objectives.links.pairwise import Softplus
from t2i_align.objectives.logits.pairwise import Full
from t2i_align.objectives.presets import Preset
from t2i_align.objectives.timesteps import Timestep


class LogitNormal(Timestep):
    formula = "sigma = sigmoid(n), n ~ N(0, 1)"
    paper = "SD3, arXiv 2403.03206"
    name: Literal["logit_normal"] = "logit_normal"

    def pick(self, uniform: float, num_timesteps: int) -> int:
        from math import exp
        normal = NormalDist().inv_cdf(min(max(uniform, 1e-9), 1 - 1e-9))
        return min(int(num_timesteps / (1 + exp(-normal))), num_timesteps - 1)


PRESET = Preset(
    Full(beta=100.0), Softplus(), timestep=LogitNormal(), formula="sp(-z)", paper="Flow-DPO", at_init="log 2"
)
"""


class Flow(nn.Module):
    """Rectified flow with a network of one number: v = scale * x_t."""

    prediction_type, num_train_timesteps = "flow_prediction", STEPS

    def __init__(self, shift: float = 1.0) -> None:
        super().__init__()
        self.scale, self._initial, self._reference = nn.Parameter(torch.tensor(0.9)), 0.9, False
        base = (torch.arange(STEPS) + 1) / STEPS  # from little noise to pure noise, as every timestep here
        self.sigmas = shift * base / (1 + (shift - 1) * base)
        ratio = ((1 - self.sigmas) / self.sigmas).square()  # of signal to noise
        self.alphas_cumprod = ratio / (1 + ratio)

    def _at(self, timesteps: Tensor, like: Tensor) -> Tensor:
        return self.sigmas.to(like)[timesteps].reshape(-1, 1, 1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = self._at(timesteps, latents)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def predict(self, noisy: Tensor, timesteps: Tensor, prompt: object, time_ids: Tensor | None = None) -> Tensor:
        return (self._initial if self._reference else self.scale) * noisy

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._reference = True
        yield
        self._reference = False


def batch(count: int = 4) -> PairBatch:
    winner, loser = torch.randn(2, count, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ones, prompt = torch.ones(count), PromptEmbeddings(torch.zeros(count, 1, 1))
    return PairBatch([str(i) for i in range(count)], [0] * count, winner, loser, prompt, None, None, ones, ones)


@pytest.fixture
def objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objective:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.py").write_text(OWN)
    return build("flow.py")


@pytest.mark.parametrize("shift", ["1.0", "3.0"])
def test_path_and_velocity_are_those_of_diffusers(shift: str) -> None:
    name = f"flow.shift{shift}"
    timesteps = (STEPS - 1) - TENSORS["flow.sched_indices"]  # diffusers counts from pure noise
    flow = Flow(float(shift))
    assert torch.allclose(flow.sigmas[timesteps].double(), TENSORS[f"{name}.sigmas"], rtol=1e-5)
    latents, noise = TENSORS["flow.sched_latents"], TENSORS["flow.sched_noise"]
    assert torch.allclose(flow.add_noise(latents, noise, timesteps), TENSORS[f"{name}.noisy"], rtol=1e-5, atol=1e-6)
    assert torch.allclose(flow.target(latents, noise, timesteps), TENSORS[f"{name}.velocity"])


def test_logit_normal_timesteps_prefer_the_middle(objective: Objective) -> None:
    timesteps = objective.timestep.sample(range(2000), 0, 0, 0, STEPS)
    middle = ((timesteps >= STEPS // 4) & (timesteps < 3 * STEPS // 4)).float().mean()
    assert middle.item() == pytest.approx(2 * 0.8640 - 1, abs=0.03)  # P(|n| < log 3)


@pytest.mark.parametrize("preset", ["flow.py", "dpo", "ipo", "hinge", "kto", "nca", "mapo", "dpo_shift", "sft"])
def test_every_link_takes_velocity_errors(objective: Objective, preset: str) -> None:
    chosen, flow = build(preset), Flow()
    step = PairStep(flow, chosen, 0, 10, Accelerator(cpu=True))
    output, _ = step.loss(batch(), Draws("train", 0), 0)
    output.loss.mean().backward()
    assert flow.scale.grad is not None and flow.scale.grad.isfinite()
    if chosen.value_at_init is not None:
        assert output.loss.tolist() == pytest.approx([chosen.value_at_init] * 4)


def test_min_snr_knows_flow(objective: Objective) -> None:
    """Weight on the velocity error that puts min(SNR, gamma) on the clean latents': x_0 = x_t - sigma v."""
    flow = Flow()
    step = PairStep(flow, build("sft", timestep={"weighting": "min_snr"}), 0, 10, Accelerator(cpu=True))
    output, share = step.loss(batch(), Draws("train", 0), 0)
    sigma, snr = (table[(share * STEPS).round().long()] for table in (flow.sigmas, snr_table(flow.alphas_cumprod)))
    expected = output.metrics["e_w"] * sigma.square() * snr.clamp(max=5.0)
    assert torch.allclose(output.loss, expected.to(output.loss), rtol=1e-4)


def test_the_loop_trains_it_unchanged(objective: Objective) -> None:
    flow, accelerator, logged = Flow(), Accelerator(cpu=True), []
    training = SimpleNamespace(max_train_steps=3, gradient_accumulation_steps=1, max_grad_norm=1.0)
    training.logging_steps, training.checkpointing_steps, training.mixed_precision = 1, 9, "no"
    config = SimpleNamespace(training=training, validation=SimpleNamespace(validation_steps=None), seed=0)
    optimizer = torch.optim.SGD([flow.scale], lr=0.01)
    loop = Loop(
        config=config,
        accelerator=accelerator,
        step=PairStep(flow, objective, 0, 3, accelerator),
        provider=SimpleNamespace(batch=lambda *_: batch(), metrics=dict),
        policy=flow,
        parameters=[flow.scale],
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        hooks=Hooks(lambda _, summary: logged.append(summary.flush()), lambda _: None, lambda _: None),
    )
    loop.run()
    assert logged[0]["loss"] == pytest.approx(math.log(2)) and logged[2]["loss"] < logged[0]["loss"]
    assert loop.finished_steps == 3 and flow.scale.item() != 0.9
