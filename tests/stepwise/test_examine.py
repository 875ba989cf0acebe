"""Looking at a rollout: it is the one that training would make."""

from __future__ import annotations

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.stepwise.config import RolloutConfig
from t2i_align.stepwise.examine import examine

from .harness import PROMPTS, ROLLOUT, run_config, trainer

THRESHOLD = {"schedule": "constant", "low": 0.5}


def section(**keys) -> RolloutConfig:
    return RolloutConfig.model_validate({**ROLLOUT, "threshold": THRESHOLD, **keys})


@pytest.fixture(scope="module")
def examined(tiny_sdxl):
    run = run_config(tiny_sdxl, 64)
    return examine(run.model_copy(update={"rollout": section()}), PROMPTS[:2])


def test_it_is_the_rollout_of_training(tiny_sdxl):
    every = {"threshold": {"schedule": "constant", "low": 0.0}, "prompts_per_rollout": 1}
    provider = trainer(tiny_sdxl, every, prompts=PROMPTS[:1], resolution=64).parts.provider
    provider._refill(0)
    trained = provider._pending.index(provider._pending.parents.argsort(descending=True))
    run = run_config(tiny_sdxl, 64).model_copy(update={"rollout": section(**every)})
    steps = examine(run, PROMPTS[:1]).steps
    assert trained.parents.tolist() == [step.parent for step in steps]
    assert trained.children.tolist() == [step.child for step in steps]
    for winner, loser, step in zip(trained.winner, trained.loser, steps, strict=True):
        assert torch.equal(winner, step.candidates[step.selection.winner[0], 0])
        assert torch.equal(loser, step.candidates[step.selection.loser[0], 0])


def test_acceptance_counts_what_was_selected(examined):
    shares = examined.acceptance()
    assert list(shares) == [step.parent for step in examined.steps]
    for step, share in zip(examined.steps, shares.values(), strict=True):
        gaps = torch.tanh((step.scores.max(0).values - step.scores.min(0).values) / 2)
        assert share == float((gaps > 0.5).float().mean())


def test_pictures_are_what_the_policy_predicts(examined):
    last = examined.steps[-1]
    early, late = examined.pictures(examined.steps[0], 1), examined.pictures(last, 1)
    assert len(early) == len(late) == ROLLOUT["candidates"] and {picture.size for picture in early + late} == {(64, 64)}
    assert last.child == 0 and early[0].tobytes() != late[0].tobytes()
    assert examined.pictures(last, 1)[0].tobytes() == late[0].tobytes()  # nothing is random


def test_clear_messages(tiny_sdxl):
    run = run_config(tiny_sdxl, 64)
    with pytest.raises(UserError, match="rollout section"):
        examine(run, PROMPTS)
    with pytest.raises(UserError, match="no prompt"):
        examine(run.model_copy(update={"rollout": section()}), [])
