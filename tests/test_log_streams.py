"""Loggers never write to the output of a command that has ended, and a command's logging set-up ends with its test."""

import logging
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from t2i_align import cli


def test_a_library_handler_made_inside_a_command_outlives_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    app, library = typer.Typer(), logging.getLogger("a_library_of_a_test")

    @app.command()
    def command() -> None:
        library.handlers = [logging.StreamHandler()]  # what diffusers and transformers do when they are imported
        library.warning("inside")

    assert "inside" in CliRunner().invoke(app, []).stderr
    library.warning("outside")
    assert capsys.readouterr().err == "outside\n"
    library.handlers = []


def test_our_own_handler_follows_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    CliRunner().invoke(cli.app, ["config", "check", "no-such-file.yaml"])
    logging.getLogger("t2i_align.test").warning("later")
    assert capsys.readouterr().err == "later\n"


@pytest.mark.parametrize("turn", [1, 2])
def test_a_command_of_an_earlier_test_does_not_hide_messages(turn: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        logging.getLogger("t2i_align.test").warning("heard")
    assert caplog.messages == ["heard"]
    CliRunner().invoke(cli.app, ["--quiet", "config", "check", str(Path("no-such-file.yaml"))])
