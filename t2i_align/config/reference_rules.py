"""Rules of the precomputed reference: what can be measured before the first step, and where it is kept."""

from __future__ import annotations

from collections.abc import Iterator

from t2i_align.config.problems import Problem
from t2i_align.config.schema import RunConfig
from t2i_align.objectives.base import Choice
from t2i_align.objectives.config import resolve
from t2i_align.objectives.references import Initial

LIVE = "use model.reference: auto"


def problems(config: RunConfig) -> Iterator[Problem]:
    """Every reason why reference errors could not be measured ahead."""
    objective = resolve(config.objective)
    if config.model.reference != "precomputed" or not objective.needs_reference:
        return
    for name in ("rollout", "online", "personal"):
        if getattr(config, name) is not None:
            what = "the pictures or prompts of this section are made during the run"
            yield Problem("model.reference", what, f"precomputed with a section {name}", LIVE)
    if not isinstance(objective.reference, Initial):
        what = "a reference that follows the policy does not exist before the run"
        yield Problem("model.reference", what, f"precomputed with {_name(objective.reference)}", LIVE)
    if objective.latents.asks_policy:
        what = f"the noisy latents of objective {objective.name} depend on the policy's weights"
        yield Problem("model.reference", what, f"precomputed with {_name(objective.latents)}", LIVE)
    if config.model.reference_dir is None and config.data.cache_dir is None:
        what = "there is no folder to keep reference errors in"
        yield Problem("model.reference_dir", what, "null, and no data.cache_dir", "set data.cache_dir, or this folder")


def unread(config: RunConfig) -> Iterator[tuple[str, tuple[str, str]]]:
    """Keys that only a precomputed reference reads."""
    if config.model.reference != "precomputed":
        for name in ("reference_draws", "reference_dir"):
            yield f"model.{name}", ("is read with model.reference: precomputed only", "remove it, or set precomputed")


def _name(choice: Choice) -> str:
    return choice.model_dump()["name"]
