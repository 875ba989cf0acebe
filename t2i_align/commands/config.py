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
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... [KEY.PATH=VALUE...]",
            help="YAML files, and values that win over them.",
            show_default=False,
        ),
    ],
) -> None:
    """Check files and report every error in them; no model or data is opened.

    Files of runs, studies (they have methods), comparisons (models), reward trainings (scorer) and the built-in
    world's pretraining (vae) are known.
    """
    from reward_models.errors import RewardModelError

    overrides = [word for word in configs if "=" in word and not Path(word).exists()]
    errors = []
    for path in (word for word in configs if word not in overrides):
        try:
            _check_one(path, overrides)
        except (UserError, RewardModelError) as error:
            errors.append(str(error))
        else:
            print(f"{path}: ok")
    if errors:
        raise UserError("\n\n".join(errors))


def _check_one(path: str, overrides: list[str]) -> None:
    """Read a file as what its sections say it is."""
    from t2i_align.config.layers import file_layers
    from t2i_align.evaluation.scorers import check_scorers

    # The overrides are read by the kind of file, which knows its keys; here their sections are enough.
    sections = {str(key) for layer in file_layers(Path(path)) for key in layer.values}
    sections |= {word.partition("=")[0].partition(".")[0] for word in overrides}
    if "methods" in sections:
        from t2i_align.study.config import load_study

        check_scorers([load_study(path, overrides).judging.scorer])
    elif "models" in sections:
        from t2i_align.compare.config import load_comparison

        check_scorers(load_comparison(path, overrides).config.evaluation.scorers)
    elif "vae" in sections:
        from t2i_align.shapes.pretrain import load_config as load_pretraining

        load_pretraining(path)
    elif "scorer" in sections:
        _check_reward_training(path, overrides)
    else:
        from t2i_align.config.loading import load_config

        config = load_config(path, overrides)
        if config.online is not None or config.rollout is not None:
            from t2i_align.rewards.scorers import check_run_scorer

            check_run_scorer(config)


def _check_reward_training(path: str, overrides: list[str]) -> None:
    from t2i_align.config.layers import merge
    from t2i_align.rewards import noisy, personal, training
    from t2i_align.rewards.keys import reward_keys

    merged = merge(path, overrides, reward_keys())
    if personal.is_personal(merged.values):
        personal.read_config(merged, path)
    elif noisy.is_noisy(merged.values):
        noisy.read_config(merged, path)
    else:
        training.load_config(path, overrides)


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
