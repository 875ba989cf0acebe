"""A reference that averages the policy, by hand on a network of one number."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from t2i_align.backbones.snapshots import Snapshots
from t2i_align.objectives import build
from t2i_align.training.following import REFERENCE, Followers


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))


def followers_of(policy: Policy, **options: float) -> Followers:
    objective = build("dpo", reference={"name": "moving", **options})
    return Followers(SimpleNamespace(snapshots=Snapshots(policy)), objective, Accelerator(cpu=True))


def weights(policy: Policy, followers: Followers, steps: int, micro_steps: int = 1) -> list[float]:
    """The reference's number at each of the next steps; the policy gains 1 after each."""
    seen = []
    for step in range(steps):
        for _ in range(micro_steps):
            followers.before_step(step)
        assert followers.after_policy(step, torch.zeros(1), lambda: pytest.fail("no guard measures")) is None
        seen.append(followers.state()[f"{REFERENCE}/weight"].item())
        with torch.no_grad():
            policy.weight += 1.0
    return seen


@pytest.mark.parametrize("micro_steps", [1, 3])
def test_copies_are_mixed_in_every_so_often(micro_steps: int) -> None:
    policy = Policy()
    followers = followers_of(policy, every=2, mix=0.25)
    # policy 1, 2, 3, 4, 5: at step 2, 0.25 * 3 + 0.75 * 1; at step 4, 0.25 * 5 + 0.75 * 1.5
    assert weights(policy, followers, 5, micro_steps) == pytest.approx([1.0, 1.0, 1.5, 1.5, 2.375])
    assert followers.reference == REFERENCE


def test_a_whole_mix_is_a_copy_and_a_small_one_an_average() -> None:
    policy = Policy()
    assert weights(policy, followers_of(policy, every=1, mix=1.0), 3) == [1.0, 2.0, 3.0]
    policy = Policy()
    assert weights(policy, followers_of(policy, every=1, mix=0.1), 3) == pytest.approx([1.0, 1.1, 1.29])


def test_state_goes_on_exactly() -> None:
    policy = Policy()
    followers = followers_of(policy, every=2, mix=0.25)
    weights(policy, followers, 3)
    resumed = followers_of(policy, every=2, mix=0.25)
    resumed.restore(followers.state())
    for step in (3, 4):
        followers.before_step(step)
        resumed.before_step(step)
    assert resumed.state() == followers.state() and resumed.reference == REFERENCE
