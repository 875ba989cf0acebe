"""From files and command-line overrides to one plain mapping, remembering where each value came from.

A layer is one YAML file of the ``extends:`` chain or the overrides; a later layer wins key by key, lists as a
whole. A layer that names another ``objective.preset`` or ``rollout.preset`` starts that section afresh: options of
the earlier one, such as its ``beta``, mean something else to the new one. So one that names another ``data.source`` or
``data.heldout_source`` drops the split of the earlier one, and one that names another ``data.source`` alone drops the
earlier held-out pairs, which belong to other data: a share of the new source's prompts is held out instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2i_align.config.recipes import called
from t2i_align.config.texts import TextKeys, nothing_known, read_text
from t2i_align.errors import UserError

EXTENDS = "extends"
PRESET_SECTIONS = ("objective", "rollout")
SPLITS = {"source": "split", "heldout_source": "heldout_split"}  # of the data section
HELDOUT_SHARE = 0.05  # of a source's prompts, where held-out pairs of other data are dropped
COMMAND_LINE = "command line"
logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Foreign:
    """Held-out pairs that were dropped.

    Attributes:
        held_out: their address.
        place: what had set it.
        source: the source they do not belong to.
        layer: what named that.
    """

    held_out: str
    place: str
    source: str
    layer: Layer

    def described(self) -> str:
        """For the message."""
        return f"data.heldout_source {self.held_out}" + (f" ({self.place})" if self.place else "")


def merge(path: str | Path, overrides: Sequence[str] = (), texts: TextKeys = nothing_known) -> Merged:
    """Read ``path``, the files it extends, and the overrides; resolve ``${...}`` interpolations.

    Args:
        texts: which overridden keys hold text, see :func:`override_layer`.

    Raises:
        UserError: missing or malformed file, cycle of ``extends``, malformed override or interpolation.
    """
    return _merge([*file_layers(Path(path)), override_layer(overrides, texts)])


def merge_overrides(overrides: Sequence[str], texts: TextKeys = nothing_known) -> Merged:
    """The overrides alone, without a file. Raises UserError like :func:`merge`."""
    return _merge([override_layer(overrides, texts)])


def _merge(layers: Sequence[Layer]) -> Merged:
    merged = OmegaConf.create({})
    places: dict[str, str] = {}
    foreign: Foreign | None = None
    for layer in layers:
        for section in PRESET_SECTIONS:
            if _names_another_preset(section, layer.values, merged):
                del merged[section]
                places = {key: place for key, place in places.items() if key.split(".")[0] != section}
        for source, split in SPLITS.items():
            if _names_another_source(source, layer.values, merged):
                merged.data.pop(split, None)
                places.pop(f"data.{split}", None)
        foreign = _drop_foreign_heldout(layer, merged, places, foreign)
        merged.merge_with(layer.values)
        places.update(layer.places)
    if foreign is not None:
        _hold_out_instead(merged, places, foreign)
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


def _drop_foreign_heldout(
    layer: Layer, merged: DictConfig, places: dict[str, str], earlier: Foreign | None
) -> Foreign | None:
    """Drop held-out pairs that belong to another source than the layer names; later layers may say what is instead."""
    own, below = OmegaConf.select(layer.values, "data"), OmegaConf.select(merged, "data")
    if not isinstance(own, DictConfig):
        return earlier
    if "heldout_source" in own or "heldout_fraction" in own:
        earlier = None
    if not isinstance(below, DictConfig) or not _names_another_source("source", layer.values, merged):
        return earlier
    held_out = _raw(below, "heldout_source")
    if held_out is None or "heldout_source" in own:
        return earlier
    for name in ("heldout_source", "heldout_split"):
        below.pop(name, None)
    place = places.pop("data.heldout_source", "")
    places.pop("data.heldout_split", None)
    said = Foreign(str(held_out), place, str(_raw(own, "source")), layer)
    if "heldout_fraction" in own:
        logger.info("%s is not read: data.source is %s now", said.described(), said.source)
        return None
    return said


def _hold_out_instead(merged: DictConfig, places: dict[str, str], foreign: Foreign) -> None:
    """Hold out a share of the new source, where a run has held-out pairs at all and nothing else says which."""
    share = HELDOUT_SHARE
    if OmegaConf.select(merged, "rollout") is not None or OmegaConf.select(merged, "online") is not None:
        share = 0.0  # the policy makes the pairs; a source may be nothing but prompts
        for name in ("heldout_pairs", "heldout_draws"):
            if OmegaConf.select(foreign.layer.values, f"validation.{name}") is None:
                OmegaConf.select(merged, "validation", default=OmegaConf.create({})).pop(name, None)
                places.pop(f"validation.{name}", None)
    elif OmegaConf.select(merged, "personal.heldout_users"):
        share = 0.0  # users are held out
    if share:
        merged.data.heldout_fraction = share
        places["data.heldout_fraction"] = foreign.layer.places.get("data.source", COMMAND_LINE)
    logger.info(
        "%s is not read: data.source is %s now%s",
        foreign.described(),
        foreign.source,
        f", and {share:.0%} of its prompts are held out; data.heldout_fraction or data.heldout_source say otherwise"
        if share
        else "",
    )


def _raw(section: DictConfig, key: str) -> Any:
    """A value as written, ``${...}`` unresolved."""
    return OmegaConf.to_container(section, resolve=False).get(key)  # type: ignore[union-attr]


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


def override_layer(overrides: Sequence[str], texts: TextKeys = nothing_known) -> Layer:
    """``key.path=value`` words as a layer; values are YAML, so ``a=null``, ``a=1e-5`` and ``a=[x, y]`` work.

    Args:
        texts: which keys hold text; their values are taken as written, so ``data.source=20240501`` names a path.

    Raises:
        UserError: all malformed words together.
    """
    values = OmegaConf.create({})
    problems, places = [], {}
    for word in overrides:
        key, equals, raw = word.partition("=")
        try:
            if not equals or not all(key.split(".")):
                raise ValueError(word)
            if (kind := texts(key)) is None:
                values.merge_with(OmegaConf.from_dotlist([word]))
            else:
                OmegaConf.update(values, key, read_text(raw, kind))
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
