"""The ``t2i-align`` command: one place where commands are listed and where errors become messages."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from t2i_align import __version__
from t2i_align.commands import (
    compare,
    config,
    configs,
    data,
    demo,
    evaluate,
    export,
    objectives,
    personal,
    rewards,
    score,
    shapes,
    study,
    train,
)
from t2i_align.commands.common import is_main_process
from t2i_align.errors import UserError
from t2i_align.progress import be_quiet

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
MAY_BE_BLANK = ("--prompt",)  # options that take text for a model
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result, warnings and errors.")]


class Root(TyperGroup):
    """Turns what a user can put right into one message; any other exception is a bug and keeps its traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse blank words: a folder called ``""`` would be the current one."""
        options = ["", *args]
        for before, word in zip(options, args, strict=False):
            if not word.strip() and before not in MAY_BE_BLANK:
                what = f"the value of {before}" if before.startswith("-") else "an argument"
                error = UserError(f"{what} is blank", repr(word), "is a shell variable unset? give it a value")
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(EXIT_USER_ERROR)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or "Interrupted.", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from stop
        except Exception as error:
            if ctx.params.get("debug") or not _is_users(error):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_USER_ERROR) from error


def _is_users(error: Exception) -> bool:
    """Whether the message is meant for the user. reward_models has an error type of its own and no import here."""
    if isinstance(error, UserError):
        return True
    errors = sys.modules.get("reward_models.errors")
    return errors is not None and isinstance(error, errors.RewardModelError)


app = typer.Typer(
    cls=Root,
    name="t2i-align",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"t2i_align {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Align text-to-image diffusion models with human preferences."""
    be_quiet(quiet)
    _log_to_stderr(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to whatever standard error is at the moment; the one of an earlier call in this process may be closed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # type: ignore[override]
        return sys.stderr


def _log_to_stderr(level: int) -> None:
    """Messages of our packages as plain lines, from the main process only; libraries keep their own settings."""
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("t2i_align", "reward_models"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level if is_main_process() else max(level, logging.WARNING))
        logger.propagate = False


app.command()(train.train)
app.command()(evaluate.generate)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(score.score)
app.command()(study.study)
app.command()(export.export)
app.command()(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.add_typer(configs.app, name="configs")
app.add_typer(objectives.app, name="objectives")
app.add_typer(personal.app, name="personal")
app.add_typer(rewards.app, name="rewards")
app.add_typer(shapes.app, name="shapes")


def _with_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the option --quiet of its own: people write it last."""

    @functools.wraps(command)
    def run(*args: Any, quiet: bool = False, **options: Any) -> Any:
        if quiet:
            be_quiet()
            _log_to_stderr(logging.WARNING)
        return command(*args, **options)

    hints = {**get_type_hints(command, include_extras=True), "quiet": Quiet}
    own = inspect.signature(command)
    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in own.parameters.items()]
    added = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    run.__signature__ = own.replace(parameters=[*parameters, added])  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run


def _let_all_be_quiet(group: typer.Typer) -> None:
    for entry in group.registered_commands:
        if entry.callback is not None:
            entry.callback = _with_quiet(entry.callback)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _let_all_be_quiet(inner.typer_instance)


_let_all_be_quiet(app)


def main() -> None:
    """Entry point of the console script and of ``python -m t2i_align``."""
    app()
