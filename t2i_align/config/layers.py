"""From files and command-line overrides to one plain mapping, remembering where each value came from.

A layer is one YAML file of the ``extends:`` chain or the overrides; a later layer wins key by key, lists as a
whole. A layer that names another ``objective.preset`` or ``rollout.preset`` starts that section afresh: options of
the earlier one, such as its ``beta``, mean something else to the new one. So one that names another ``data.source`` or
``data.heldout_source`` drops the split of the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2i_align.config.recipes import called
from t2i_align.errors import UserError

EXTENDS = "extends"
PRESET_SECTIONS = ("objective", "rollout")
SPLITS = {"source": "split", "heldout_source": "heldout_split"}  # of the data section
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Layer:
    """Values of one file or of the command line, and for each dotted path a place such as ``dpo.yaml:12``."""

    values: DictConfig
    places: dict[str, str]


@dataclass(frozen=True)
class Merged:
    """All layers as one plain mapping, and the place that set each dotted path last."""

    values: dict[str, Any]
    places: dict[str, str]


def merge(path: str | Path, overrides: Sequence[str] = ()) -> Merged:
    """Read ``path``, the files it extends, and the overrides; resolve ``${...}`` interpolations.

    Raises:
        UserError: missing or malformed file, cycle of ``extends``, malformed override or interpolation.
    """
    return _merge([*file_layers(Path(path)), override_layer(overrides)])


def merge_overrides(overrides: Sequence[str]) -> Merged:
    """The overrides alone, without a file. Raises UserError like :func:`merge`."""
    return _merge([override_layer(overrides)])


def _merge(layers: Sequence[Layer]) -> Merged:
    merged = OmegaConf.create({})
    places: dict[str, str] = {}
    for layer in layers:
        for section in PRESET_SECTIONS:
            if _names_another_preset(section, layer.values, merged):
                del merged[section]
                places = {key: place for key, place in places.items() if key.split(".")[0] != section}
        for source, split in SPLITS.items():
            if _names_another_source(source, layer.values, merged):
                merged.data.pop(split, None)
                places.pop(f"data.{split}", None)
        merged.merge_with(layer.values)
        places.update(layer.places)
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise UserError(
            f"{key}: the interpolation cannot be resolved",
            found=f"{str(error).splitlines()[0]} ({places.get(key, 'unknown place')})",
            fix="name a key of the same file as ${section.key}, or write the value out",
        ) from error
    assert isinstance(values, dict)
    return Merged({str(key): value for key, value in values.items()}, places)


def _names_another_preset(section: str, above: DictConfig, below: DictConfig) -> bool:
    presets = [OmegaConf.select(values, f"{section}.preset") for values in (above, below)]
    return None not in presets and presets[0] != presets[1]


def _names_another_source(key: str, above: DictConfig, below: DictConfig) -> bool:
    sections = [OmegaConf.select(values, "data") for values in (above, below)]
    if not all(isinstance(section, DictConfig) and key in section for section in sections):
        return False
    return sections[0][key] != sections[1][key]


def file_layers(path: Path, chain: tuple[Path, ...] = ()) -> list[Layer]:
    """The file's own layer, after those of the files it extends (a path or a list, relative to the file)."""
    if path.resolve() in (seen.resolve() for seen in chain):
        cycle = " -> ".join(str(seen) for seen in (*chain, path))
        raise UserError("configuration files extend each other in a circle", cycle, "remove one of the extends lines")
    layer = read_file(path, chain)
    named = layer.values.pop(EXTENDS, None)
    parents = list(named) if isinstance(named, ListConfig) else [] if named is None else [named]
    if not all(isinstance(parent, str) for parent in parents):
        raise UserError(
            f"{EXTENDS} must be a path or a list of paths",
            found=f"{named} ({layer.places.get(EXTENDS, path)})",
            fix=f"write {EXTENDS}: ../base/common.yaml, relative to {path}",
        )
    below = [found for parent in parents for found in file_layers(path.parent / parent, (*chain, path))]
    return [*below, layer]


def read_file(path: Path, chain: Sequence[Path] = ()) -> Layer:
    """One YAML file as a layer; ``chain`` are the files that led here, for the message."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        via = f", named by {EXTENDS} in {chain[-1]}" if chain else ""
        recipe = None if path.is_dir() or chain else called(path)
        fix = _files_nearby(path) if recipe is None else f"a recipe is called so; t2i-align configs copy {recipe}"
        raise UserError(f"configuration file {path} {kind}{via}", fix=fix)
    try:
        text = path.read_text(encoding="utf-8")
        values = OmegaConf.create(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(
            f"{place}: not valid YAML",
            error.problem or str(error),
            "mind indentation, colons, brackets and quotes",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not valid YAML", reason, "save it as UTF-8 text; quote ${{...}}") from error
    if node is None:
        return Layer(OmegaConf.create({}), {})
    if not isinstance(node, yaml.MappingNode) or not isinstance(values, DictConfig):
        raise UserError(f"{path}: the file must be a mapping of sections", text.strip()[:80], "start with `model:`")
    return Layer(values, {dotted: f"{path}:{line}" for dotted, line in _lines(node, "")})


def _lines(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int]]:
    """(dotted path, line from 1) of every key below a mapping."""
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        yield dotted, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, dotted + ".")


def _files_nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    files = sorted(str(file) for pattern in ("*.yaml", "*.yml") for file in folder.glob(pattern))
    if files:
        return f"choose one of: {', '.join(files[:8])}"
    return f"no YAML file in {folder}; check the path, or see t2i-align configs list"


def override_layer(overrides: Sequence[str]) -> Layer:
    """``key.path=value`` words as a layer; values are YAML, so ``a=null``, ``a=1e-5`` and ``a=[x, y]`` work.

    Raises:
        UserError: all malformed words together.
    """
    values = OmegaConf.create({})
    problems, places = [], {}
    for word in overrides:
        key, equals, _ = word.partition("=")
        try:
            if not equals or not all(key.split(".")):
                raise ValueError(word)
            values.merge_with(OmegaConf.from_dotlist([word]))
        except (ValueError, yaml.YAMLError, OmegaConfBaseException):
            problems.append(word)
            continue
        places[key] = COMMAND_LINE
    if problems:
        raise UserError(
            "overrides must be written key.path=value, with a YAML value",
            found=", ".join(repr(word) for word in problems),
            fix="for example training.learning_rate=1e-5; quote a word that holds spaces or brackets",
        )
    return Layer(values, places)
