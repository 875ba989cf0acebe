"""Scorers from the words of a command line: reward models by name, the oracle, or a file that spells them out.

pickscore                    published weights
pickscore=DIR                weights of your own; hub references and shapes: addresses work too
mps:aesthetic=DIR            with a condition
shapes:pickscore             a head of the shapes world, short for pickscore=shapes:pickscore; shapes:mps:aesthetic too
oracle, oracle:semantic      the judge of the shapes world, overall or in one dimension
scorers.yaml                 label -> keywords of reward_models.load, and `name` where it is not the label
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import reward_models
from reward_models.scorer import BaseScorer
from t2i_align.errors import UserError
from t2i_align.rewards.oracle import OracleScorer

ORACLE = "oracle"
BUILT_IN = "shapes:"
FILE_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class ScorerSpec:
    """One scorer that was asked for.

    Attributes:
        label: what its scores are called; the scorer's own name where empty.
        name: of ``reward_models.load``, with a condition after a colon, or ``oracle``.
        options: keywords of ``reward_models.load``, ``checkpoint`` among them.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""


def load_scorers(words: Sequence[str], device: str | None = None, dtype: str | None = None) -> list[BaseScorer]:
    """Every scorer that the words name, ready to score.

    Args:
        words: see the module; commas separate several in one word.
        device, dtype: of reward models; None leaves them to ``reward_models.load``.

    Raises:
        UserError: no scorer, one asked for twice, or a broken file.
        RewardModelError: an unknown name, or a checkpoint that cannot be used.
    """
    specs = [spec for word in words for spec in parse(word)]
    if not specs:
        raise UserError("No scorer was given.", "", "name at least one, for example --scorer pickscore")
    scorers = [load_scorer(spec, device, dtype) for spec in specs]
    names = [scorer.name for scorer in scorers]
    if len(set(names)) != len(names):
        raise UserError(
            "Two scorers have the same name.",
            ", ".join(names),
            "list them in a .yaml file, where every scorer has a label of its own",
        )
    return scorers


def load_scorer(spec: ScorerSpec | str, device: str | None = None, dtype: str | None = None) -> BaseScorer:
    """One scorer; see `load_scorers`."""
    if isinstance(spec, str):
        specs = parse(spec)
        if len(specs) != 1:
            raise UserError("One scorer is wanted here.", f"{len(specs)} in {spec!r}", "name a single one")
        spec = specs[0]
    name, _, dimension = spec.name.partition(":")
    if name == ORACLE:
        if spec.options:
            raise UserError("The oracle takes no checkpoint and no options.", f"{spec.options}", f"write {spec.name}")
        scorer: BaseScorer = OracleScorer(dimension or "overall")
    else:
        options = {key: resolved(value) for key, value in spec.options.items()}
        given = {"device": device, "dtype": dtype}
        options = {key: value for key, value in given.items() if value is not None} | options
        scorer = reward_models.load(spec.name, **options)
    if spec.label:
        scorer.name = spec.label
    return scorer


def parse(word: str) -> list[ScorerSpec]:
    """What one word asks for.

    Raises:
        UserError: an empty name or checkpoint, or a file that does not hold scorers.
    """
    if word.endswith(FILE_SUFFIXES) and Path(word).is_file():  # whatever its path holds
        return _from_file(Path(word))
    specs = []
    for piece in (piece.strip() for piece in word.split(",")):
        name, equals, checkpoint = piece.partition("=")
        if not name or (equals and not checkpoint):
            raise UserError("A scorer must be written NAME or NAME=CHECKPOINT.", repr(word), "for example pickscore")
        if not equals and name.endswith(FILE_SUFFIXES):
            specs += _from_file(Path(name))
        elif not equals and name.startswith(BUILT_IN):
            head, colon, condition = name.removeprefix(BUILT_IN).partition(":")
            specs.append(ScorerSpec(f"{head}{colon}{condition}", {"checkpoint": f"{BUILT_IN}{head}"}))
        else:
            specs.append(ScorerSpec(name, {"checkpoint": checkpoint} if equals else {}))
    return specs


def resolved(value: Any) -> Any:
    """A ``shapes:`` address as the path of the packaged file; anything else unchanged."""
    if isinstance(value, str) and value.startswith(BUILT_IN):
        from t2i_align.shapes.assets import resolve

        return str(resolve(value))
    return value


def _from_file(path: Path) -> list[ScorerSpec]:
    if not path.is_file():
        raise UserError("The file of scorers does not exist.", str(path), "check the path")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("The file of scorers is not valid YAML.", f"{path}: {error}", "mend it") from error
    if not isinstance(content, dict) or not all(isinstance(keys, dict | None) for keys in content.values()):
        raise UserError(
            "A file of scorers must map labels to keywords.",
            str(path),
            "for example `light: {name: mps, checkpoint: mps/, condition: 'light, tone'}`",
        )
    specs = []
    for label, keywords in content.items():
        options = dict(keywords or {})
        specs.append(ScorerSpec(str(options.pop("name", label)), options, str(label)))
    return specs
