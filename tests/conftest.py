"""Shared fixtures: tiny pipelines, written once per session. Treat the folders as read-only."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from t2i_align.progress import be_quiet

# Tests never reach the network, and one thread makes sums reproducible and keeps small tensors quick.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SDXL: 64 px pictures, 4x16x16 latents, epsilon prediction."""
    from tests.tiny import make_sdxl

    return make_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SD1.x: 64 px pictures, 4x16x16 latents, epsilon prediction."""
    from tests.tiny import make_sd

    return make_sd(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SD2.x: 8x VAE, 64 px pictures, 4x8x8 latents, v-prediction."""
    from tests.tiny import make_sd

    return make_sd(tmp_path_factory.mktemp("tiny") / "sd_v", "v_prediction", downsamples=3, sample_size=8)


OURS = ("t2i_align", "reward_models")


@pytest.fixture(autouse=True)
def open_log_streams(monkeypatch: pytest.MonkeyPatch):
    """A command that is invoked in a test must not leave loggers behind that write to its closed output.

    Libraries that a command imports (diffusers, transformers) make handlers for the standard error of that moment,
    which is the runner's; the next failure would drown in "I/O operation on closed file". The command itself sets up
    our own loggers for a process of its own; caplog hears them only while they propagate.
    """
    real = CliRunner.invoke

    def invoke(self, *args, **options):
        try:
            return real(self, *args, **options)
        finally:
            reopen_log_streams()

    monkeypatch.setattr(CliRunner, "invoke", invoke)
    be_quiet(False)  # nor the silence that it was asked for
    loggers = [logging.getLogger(name) for name in OURS]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)
    reopen_log_streams()


def reopen_log_streams() -> None:
    """Point every log handler whose stream is closed to standard error."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {handler for one in loggers for handler in getattr(one, "handlers", ())}:
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
            handler.stream = sys.stderr  # setStream would flush the closed one


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state per process: without this, the first test's precision would be everybody's."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)
