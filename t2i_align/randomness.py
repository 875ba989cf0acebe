"""Addressed randomness: a draw is a function of its address, never of how many numbers were drawn before.

A pair's timestep, noise, crop, flip and caption dropout depend on ``(seed, purpose, epoch, pair id, draw)``
alone. A resumed run, any number of processes, any batch order and a reference computed yesterday all see the
same draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Address = str | int


def address_hash(seed: int, *address: Address) -> int:
    """64-bit blake2b hash of a seed and an address; parts are length-prefixed, so ("ab", "c") != ("a",
    "bc")."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *address):
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise TypeError(f"an address is made of str and int, got {part!r} ({type(part).__name__})")
        kind = b"s" if isinstance(part, str) else b"i"
        encoded = str(part).encode()
        digest.update(kind + len(encoded).to_bytes(4, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def addressed_generator(seed: int, *address: Address) -> torch.Generator:
    """CPU generator whose whole stream is fixed by ``(seed, *address)``.

    The stream is made on the CPU, so it is the same whatever device trains. torch's CPU engine keeps 32 bits
    of a
    seed: two addresses in about 4e9 share a stream, which for noise is harmless.
    """
    return torch.Generator(device="cpu").manual_seed(address_hash(seed, *address))


def addressed_normal(shape: Sequence[int], seed: int, *address: Address) -> Tensor:
    """Standard normal float32 tensor of the given shape, on the CPU."""
    return torch.randn(tuple(shape), generator=addressed_generator(seed, *address), dtype=torch.float32)


def addressed_uniform(seed: int, *address: Address) -> float:
    """One number in [0, 1) with the 53 bits of a double, straight from the hash (no generator is built)."""
    return (address_hash(seed, *address) >> 11) / float(1 << 53)
