"""Scorers from the words of a command line: reward models by name, judges of the shapes world, functions, files.

pickscore                    published weights
pickscore=DIR                weights of your own; hub references and shapes: addresses work too
mps:aesthetic=DIR            with a condition
shapes:pickscore             a head of the shapes world, short for pickscore=shapes:pickscore; shapes:mps:aesthetic too
oracle, oracle:semantic      the judge of the shapes world, overall or in one dimension
taste:1000003                a user of the shapes world: taste:ID[@POPULATION][:TASTE+TASTE]
file.py:function             a function of your own; the file is run when the scorer is loaded, not when it is named
scorers.yaml                 label -> keywords of reward_models.load, and `name` where it is not the label
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import reward_models
from reward_models.errors import RewardModelError, nearest_of
from reward_models.own import FORM, own_name
from reward_models.registry import SCORERS
from reward_models.registry import check as check_model
from reward_models.scorer import BaseScorer
from t2i_align.errors import UserError
from t2i_align.rewards.oracle import DIMENSIONS, OracleScorer, TasteScorer

if TYPE_CHECKING:
    from t2i_align.config.schema import RunConfig

ORACLE, TASTE = "oracle", "taste"
JUDGES = {ORACLE: "the judge of the shapes world", TASTE: "a user of it"}
BUILT_IN = "shapes:"
FILE_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class ScorerSpec:
    """One scorer that was asked for.

    Attributes:
        label: what its scores are called; the scorer's own name where empty.
        name: of ``reward_models.load``, with a condition after a colon; ``oracle``, ``taste:ID`` or
            ``file.py:function``.
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
        UserError: no scorer, an unknown one, one asked for twice, or a broken file.
        RewardModelError: a checkpoint that cannot be used.
    """
    specs = [spec for word in words for spec in parse(word)]
    if not specs:
        raise UserError("No scorer was given.", "", "name at least one, for example --scorer pickscore")
    for spec in specs:  # all of them, before the first one is loaded
        check_spec(spec)
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
        spec = _only(parse(spec), spec)
    if _judge_of(spec) is not None:
        scorer: BaseScorer = _judge(spec)
    else:
        options = {key: resolved(value) for key, value in spec.options.items()}
        given = {"device": device, "dtype": dtype}
        options = {key: value for key, value in given.items() if value is not None} | options
        scorer = reward_models.load(spec.name, **options)
    if spec.label:
        scorer.name = spec.label
    return scorer


def check_scorer_words(words: Iterable[str], one_each: bool = False) -> None:
    """Whether there are scorers of these names, before any work is done for them.

    Names, conditions, options and ``shapes:`` addresses are checked, and that a file of one's own defines its function.
    No checkpoint is looked for, nothing is loaded, and no file is run.

    Args:
        words: see the module; commas separate several in one word.
        one_each: every word must name a single scorer, as for `load_scorer`.

    Raises:
        UserError: what is wrong, with the nearest name that there is.
    """
    for word in words:
        specs = parse(word)
        if one_each:
            _only(specs, word)
        for spec in specs:
            check_spec(spec)


def _only(specs: list[ScorerSpec], word: str) -> ScorerSpec:
    if len(specs) != 1:
        raise UserError("One scorer is wanted here.", f"{len(specs)} in {word!r}", "name a single one")
    return specs[0]


def check_run_scorer(config: RunConfig) -> None:
    """`check_scorer_words` of the scorer that a run samples pairs with, if it does.

    Raises:
        UserError: there is no such scorer.
    """
    if config.online is not None:
        check_scorer_words([config.online.scorer], one_each=True)
    elif config.rollout is not None and config.rollout.scorer.name == "pixel":
        judge = config.rollout.scorer
        check_spec(ScorerSpec(str(judge.reward), {} if judge.checkpoint is None else {"checkpoint": judge.checkpoint}))


def check_spec(spec: ScorerSpec) -> None:
    """`check_scorer_words` of one scorer."""
    if _judge_of(spec) is not None:
        _judge(spec)
        return
    name = spec.name.partition(":")[0]
    if name not in SCORERS and own_name(spec.name) is None:
        known = [*SCORERS, *JUDGES]
        raise UserError(
            f"There is no scorer {name!r}.",
            spec.name,
            f"{nearest_of(name, known)}use one of {', '.join(known)}, or {FORM} for one of your own",
        )
    try:
        check_model(spec.name, {key: resolved(value) for key, value in spec.options.items()})
    except RewardModelError as error:
        raise UserError(f"The scorer {spec.name} cannot be used: {error.what}.", error.found, error.fix) from error


def _judge_of(spec: ScorerSpec) -> str | None:
    """Which judge of the shapes world a scorer is; None for a reward model."""
    name = spec.name.partition(":")[0]
    return name if name in JUDGES else None


def _judge(spec: ScorerSpec) -> BaseScorer:
    name, _, detail = spec.name.partition(":")
    if spec.options:
        raise UserError(
            f"The scorer {name} takes no checkpoint and no options.", f"{spec.options}", f"write {spec.name}"
        )
    if name == TASTE:
        return TasteScorer(detail)
    if detail and detail not in DIMENSIONS:
        raise UserError(
            f"The oracle has no dimension {detail!r}.",
            spec.name,
            f"{nearest_of(detail, DIMENSIONS)}use one of {', '.join(DIMENSIONS)}",
        )
    return OracleScorer(detail or "overall")


def parse(word: str) -> list[ScorerSpec]:
    """What one word asks for.

    Raises:
        UserError: an empty name or checkpoint, or a file that does not hold scorers.
    """
    if word.endswith(FILE_SUFFIXES) and Path(word).is_file():  # whatever its path holds
        return _from_file(Path(word))
    specs = []
    for piece in (piece.strip() for piece in word.split(",")):
        if _is_own(piece):
            specs.append(ScorerSpec(piece))
            continue
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


def _is_own(piece: str) -> bool:
    try:
        return own_name(piece) is not None
    except RewardModelError as error:
        raise UserError(f"{error.what[0].upper()}{error.what[1:]}.", error.found, error.fix) from error


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
