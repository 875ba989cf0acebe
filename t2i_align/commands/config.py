"""``t2i-align config``: look at a configuration before it costs anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from t2i_align.commands.common import ConfigFile, Overrides
from t2i_align.errors import UserError

app = typer.Typer(help="Check, show and explain configuration files.", no_args_is_help=True)


@app.command()
def check(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="YAML files of runs.", show_default=False)],
) -> None:
    """Check files and report every error in them; no model or data is opened."""
    from t2i_align.config.loading import load_config

    errors = []
    for path in configs:
        try:
            load_config(path)
        except UserError as error:
            errors.append(str(error))
        else:
            print(f"{path}: ok")
    if errors:
        raise UserError("\n\n".join(errors))


@app.command()
def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved configuration: extended files, overrides and defaults merged."""
    from t2i_align.config.loading import dump, load_config

    print(dump(load_config(config, overrides or ())), end="")


@app.command()
def schema(
    section: Annotated[str, typer.Argument(help="Only this section or key, such as model.lora.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The whole JSON schema, for editors.")] = False,
) -> None:
    """Print every key with its type, default and meaning."""
    from t2i_align.config.describe import describe
    from t2i_align.config.fields import json_schema

    if as_json and section:
        raise UserError("--json prints the whole schema", section, "leave the section out")
    print(json.dumps(json_schema(), indent=2) if as_json else describe(section))
