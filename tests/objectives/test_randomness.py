"""Addressed randomness."""

from __future__ import annotations

import pytest
import torch

from t2i_align.randomness import address_hash, addressed_generator, addressed_normal, addressed_uniform

KNOWN_HASH = 10547954041632702473


def test_same_address_same_numbers_whatever_came_before() -> None:
    first = addressed_normal((2, 3), 0, "noise", 1, "pair-7", 0)
    torch.randn(100)
    addressed_normal((5,), 0, "noise", 2, "pair-7", 0)
    assert torch.equal(addressed_normal((2, 3), 0, "noise", 1, "pair-7", 0), first)
    assert first.dtype == torch.float32 and first.device.type == "cpu"


def test_every_part_of_the_address_counts() -> None:
    base = (0, "noise", 1, "7", 0)
    others = [(1, "noise", 1, "7", 0), (0, "time", 1, "7", 0), (0, "noise", 2, "7", 0), (0, "noise", 1, "8", 0),
              (0, "noise", 1, 7, 0), (0, "noise", 1, "7", 1), (0, "noise", 1, "7"), (0, "noise1", "7", 0)]  # fmt: skip
    hashes = {address_hash(*address) for address in [base, *others]}
    assert len(hashes) == len(others) + 1
    assert address_hash(0, "ab", "c") != address_hash(0, "a", "bc")


def test_known_values_do_not_drift() -> None:
    """Draws are part of what a checkpoint and a cached reference mean: changing them breaks both."""
    assert address_hash(0, "timestep", 0, "a", 0) == KNOWN_HASH
    assert addressed_uniform(0, "timestep", 0, "a", 0) == (KNOWN_HASH >> 11) / 2**53


def test_moments() -> None:
    normal = addressed_normal((4, 64, 64), 3, "noise")
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    uniforms = torch.tensor([addressed_uniform(0, "u", index) for index in range(4000)])
    assert uniforms.min() >= 0 and uniforms.max() < 1 and abs(uniforms.mean() - 0.5) < 0.03
    assert addressed_generator(0, "a").initial_seed() == address_hash(0, "a")


@pytest.mark.parametrize("part", [1.5, None, True])
def test_addresses_are_text_and_whole_numbers(part: object) -> None:
    with pytest.raises(TypeError, match="an address is made of str and int"):
        address_hash(0, part)
