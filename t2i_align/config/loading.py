"""``load_config``: from a YAML file and overrides to a checked :class:`RunConfig`, and back to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reward_models.files import write_text
from t2i_align.config import rules
from t2i_align.config.layers import merge, merge_overrides
from t2i_align.config.problems import Problem, from_validation, report
from t2i_align.config.schema import DataConfig, RunConfig, Section
from t2i_align.config.texts import text_keys
from t2i_align.objectives.config import resolve

RESOLVED_HEADER = "# Every key this run reads, defaults included. `t2i-align train` accepts this file.\n"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file.

    Args:
        path: the file; its ``extends:`` names files to start from, relative to it.
        overrides: ``key.path=value`` words with YAML values, text where the key holds text; they win over every file.

    Raises:
        UserError: every problem together: unknown keys (with the nearest valid one), wrong types, values out
            of range, missing keys, and options that do not go together (``rules``). A file that cannot be
            read at all is reported alone.
    """
    merged = merge(path, overrides, text_keys(RunConfig))
    return config_from_values(merged.values, str(path), merged.places)


def config_from_values(values: Mapping[str, Any], source: str, places: Mapping[str, str] | None = None) -> RunConfig:
    """A run from plain values, checked like a file.

    Args:
        values: sections and keys.
        source: where they are from, for messages.
        places: dotted path -> file and line, for messages.

    Raises:
        UserError: every problem together, like :func:`load_config`.
    """
    config, problems = _validate(values)
    if config is not None:
        problems = rules.violations(config)
    if config is None or problems:
        raise report(problems, source, places or {})
    return config


def load_data_section(overrides: Sequence[str]) -> DataConfig:
    """A data section without a file, from ``data.key=value`` words; the resolution is 512 unless given.

    Raises:
        UserError: like :func:`load_config`.
    """
    merged = merge_overrides(["data.resolution=512", *overrides], text_keys(RunConfig))
    try:
        return _DataOnly.model_validate(merged.values).data
    except ValidationError as error:
        raise report(from_validation(error), "data section", merged.places) from error


class _DataOnly(Section):
    data: DataConfig


def _validate(values: Mapping[str, Any]) -> tuple[RunConfig | None, list[Problem]]:
    try:
        return RunConfig.model_validate(values), []
    except ValidationError as error:
        return None, from_validation(error)


def resolved(config: RunConfig) -> dict[str, Any]:
    """Plain values of every key that the run reads; what its model or objective ignores is left out."""
    values = config.model_dump(mode="json")
    values["objective"] = resolve(config.objective).config
    for path in rules.unread(config):
        *sections, name = path.split(".")
        holder = values
        for section in sections:
            holder = holder.get(section, {})
        holder.pop(name, None)
    return {name: value for name, value in values.items() if value != {}}


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML text that ``load_config`` accepts."""
    body = yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True, width=100)
    return RESOLVED_HEADER + body


def save_resolved(config: RunConfig, path: str | Path, notes: Sequence[str] = ()) -> None:
    """Write the resolved configuration, with notes as comments above it; parent folders are made."""
    head, _, body = dump(config).partition("\n")
    write_text(path, "\n".join([head, *(f"# {note}" for note in notes), body]))
