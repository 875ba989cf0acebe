"""Memory of a CPU run: what a step frees is kept for the next one, as GPU allocators do."""

from __future__ import annotations

import ctypes

# Numbers of mallopt(3), and its largest values. Setting one switches off their adaptation, so both are set.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_INT, LARGEST_HEAP_BLOCK = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Tell the C library not to return freed memory to the system; returns whether it listened.

    A step frees its activations and the next one takes as much again. Returned pages are taken back one fault at a
    time and zeroed first. Peak memory does not change. Only glibc has the switch; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(TRIM_THRESHOLD, LARGEST_INT) and mallopt(MMAP_THRESHOLD, LARGEST_HEAP_BLOCK))
