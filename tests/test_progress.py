"""Progress of long loops: pace and time left, lines in a log file, silence under --quiet."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from t2i_align import progress
from t2i_align.progress import Progress, bars, in_words, say


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def speaking() -> Iterator[None]:
    yield
    progress.be_quiet(False)


def test_a_log_file_gets_a_line_now_and_then_with_pace_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("sampling [set] one", 100, stream=stream, clock=clock) as loop:
        clock.now += 10
        loop.advance(10)  # ten seconds: too early for a line
        clock.now += 30
        loop.advance(10)  # 20 done in 40 s: 2 s each, 160 s left
        clock.now += 5
        loop.advance(10)
        clock.now += 120
        loop.advance(70)
    assert stream.getvalue().splitlines() == [
        "sampling [set] one: 20/100 pictures, 2 s/picture, 2 min 40 s left",
        "sampling [set] one: 100/100 pictures, 1.65 s/picture, 2 min 45 s in all",
    ]


def test_a_short_loop_leaves_a_log_file_alone() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("sampling", 2, stream=stream, clock=clock) as loop:
        clock.now += 3
        loop.advance(2)
    assert stream.getvalue() == ""


def test_what_an_earlier_run_did_counts_for_no_pace() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("scoring", 100, stream=stream, clock=clock, start=90) as loop:
        clock.now += 40
        loop.update(95)
    assert stream.getvalue() == "scoring: 95/100 pictures, 8 s/picture, 40 s left\n"


def test_a_terminal_gets_a_bar_and_keeps_brackets() -> None:
    stream = Terminal()
    with Progress("sampling [set] one", 4, stream=stream) as loop:
        loop.advance(4)
    assert "sampling [set] one" in stream.getvalue() and "4/4" in stream.getvalue()


def test_quiet_silences_everything(capsys: pytest.CaptureFixture[str]) -> None:
    progress.be_quiet()
    clock, stream = Clock(), io.StringIO()
    with Progress("sampling", 2, stream=stream, clock=clock) as loop:
        clock.now += 300
        loop.advance(2)
    with bars() as bar:
        assert bar is None
    say("on the way")
    assert (stream.getvalue(), capsys.readouterr().out) == ("", "")
    progress.be_quiet(False)
    say("on the way")
    assert capsys.readouterr().out == "on the way\n"


def test_bars_for_loops_that_call_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    with bars() as bar:
        assert bar is not None
        for done in range(1, 4):
            bar("pairs", done, 3)
    assert "pairs" in stream.getvalue() and "3/3" in stream.getvalue()


def test_seconds_in_words() -> None:
    assert [in_words(value) for value in (0.4, 48, 60, 725, 3600, 12000)] == [
        "0 s",
        "48 s",
        "1 min",
        "12 min 5 s",
        "1 h",
        "3 h 20 min",
    ]
