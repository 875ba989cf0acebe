"""Long loops in the terminal: a live bar where there is one, a line now and then where there is a log file.

Both say how far the loop is, seconds per item, and the time left. ``--quiet`` silences them (``be_quiet``), and so does
every process but the main one. Everything goes to standard error: standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_SECONDS = 30.0
"""Shortest time between two lines of a log file."""

_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Silence ``Progress`` and ``say`` in this process, or let them speak again."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether ``be_quiet`` was called."""
    return _quiet


def say(text: str) -> None:
    """A line on the way to a result, on standard output; nothing under ``--quiet``."""
    if not _quiet:
        print(text, flush=True)


class Progress:
    """Progress of one loop; a context manager, or closed by ``close``.

    Args:
        what: such as ``sampling base``; shown as it is, brackets included.
        total: items in all.
        unit: one of them.
        start: items that were done before, which count for no pace.
        show: whether this process speaks.
        stream: where to; None is standard error.
        clock: seconds, rising.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "picture",
        *,
        start: int = 0,
        show: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._stream = stream or sys.stderr
        self._show = show and not _quiet
        self._start = self._done = start
        self._begun = self._said = clock()
        self._lines = 0
        self._bar: Bar | None = None
        if self._show and self._stream.isatty():
            self._open_bar()

    def advance(self, count: int = 1) -> None:
        """``count`` more items are done."""
        self.update(self._done + count)

    def update(self, done: int) -> None:
        """``done`` items are done in all."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, pace=self._pace())
        elif self._show:
            self._line()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(file=self._stream))
        self._task = self._bar.add_task(self._what, total=self._total, completed=self._start, pace="")
        self._bar.start()

    def _line(self) -> None:
        """A line when the last one is old enough, and a last one where there was any."""
        now, finished = self._clock(), self._done >= self._total
        if now - self._said < LINE_SECONDS and not (finished and self._lines):
            return
        self._said = now
        self._lines += 1
        left = f"{in_words(now - self._begun)} in all" if finished else f"{in_words(self._left())} left"
        text = f"{self._what}: {self._done}/{self._total} {self._unit}s, {self._pace()}, {left}"
        print(text, file=self._stream, flush=True)

    def _seconds_each(self) -> float:
        return (self._clock() - self._begun) / max(self._done - self._start, 1)

    def _left(self) -> float:
        return (self._total - self._done) * self._seconds_each()

    def _pace(self) -> str:
        return f"{self._seconds_each():.3g} s/{self._unit}"


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback (what, done, total) for loops that only know how to call one; None where nothing is to be said."""
    if _quiet:
        yield None
        return
    running: dict[str, Progress] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in running:
            for earlier in running.values():
                earlier.close()  # two live bars cannot share a terminal
            # What was done at the first call may be an earlier run's: the pace is that of what follows.
            running[what] = Progress(what, total, _singular(what), start=done)
        running[what].update(done)

    try:
        yield update
    finally:
        for one in running.values():
            one.close()


def in_words(seconds: float) -> str:
    """``48 s``, ``12 min 5 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _singular(what: str) -> str:
    return what[:-1] if what.endswith("s") else "item"
