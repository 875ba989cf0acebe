"""Several processes that share a job without training together: whose part is what, own files, and meeting again.

Launchers (torchrun, ``accelerate launch``) number the processes in the environment. Work is divided by blocks of
items, so that every batch is one that a single process would have made: the results are the same. What a process
finishes goes to a file of its own, because appends of several machines to one file do not add up; the main process
joins them. After a kill the parts are still there, and any number of processes goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
PART = ".rank"
PATIENCE = timedelta(days=7)  # until the slowest process has finished its share


@dataclass(frozen=True)
class Processes:
    """This process among those of a job.

    Attributes:
        rank: from 0 to count - 1; 0 is the main process, which prepares and joins.
        count: of all machines.
        local: rank on this machine, which chooses the device.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Processes:
        """From the launcher's environment; without a launcher there is one process."""
        environment = os.environ
        return cls(*(int(environment.get(name, default)) for name, default in _VARIABLES))

    @property
    def is_main(self) -> bool:
        """Whether this process prepares, joins and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item], block: int, position: Callable[[Item], int]) -> list[Item]:
        """This process's items: those whose position in the whole job lies in one of its blocks.

        Args:
            items: those that are left to do.
            block: items per block; the batch size, so that batches are those of a single process.
            position: of an item in the whole job, which does not change with what is already done.
        """
        return [item for item in items if position(item) // block % self.count == self.rank]

    def device(self, asked: str | None) -> str | None:
        """The device asked for, or this process's own among several GPUs."""
        return f"cuda:{self.local}" if asked is None and self.count > 1 and torch.cuda.is_available() else asked

    def part(self, file: Path) -> Path:
        """Where this process writes lines that belong into ``file``."""
        return file if self.count == 1 else file.with_name(f"{file.name}{PART}{self.rank}")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier(group=_group())


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def parts_of(file: Path) -> list[Path]:
    """What processes have written for ``file`` and nobody has joined yet."""
    return sorted(file.parent.glob(f"{file.name}{PART}*"))


def join_lines(file: Path) -> None:
    """Append the parts' lines to a file of lines and remove the parts; only the main process may.

    A line that a kill cut short is left out; one that is joined twice after another kill must do no harm.
    """
    for part in parts_of(file):
        text = part.read_text(encoding="utf-8", errors="replace")  # a kill may cut a character of the last line
        with file.open("a", encoding="utf-8") as stream:
            stream.write(text[: text.rfind("\n") + 1])
        part.unlink()


@lru_cache(maxsize=1)
def _group() -> Any:
    """Processes may finish hours apart, so they meet through gloo, whose patience is ours to choose."""
    if torch.distributed.is_initialized():
        return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    return None
