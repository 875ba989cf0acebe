"""Several scorers as one: a weighted sum of standardised scores.

    score(p, x) = sum_k w_k * (s_k(p, x) - mean_k) / std_k

The scales of the scorers differ by orders of magnitude, so each is standardised by its mean and standard deviation on
a reference set, which the specification names; `fit_standardisation` measures them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from reward_models.errors import RewardModelError
from reward_models.images import ImageSource
from reward_models.loading import read_json
from reward_models.own import own_name
from reward_models.preprocess import Preprocessor
from reward_models.scorer import BaseScorer, Prepared, Prompts


class MemberSpec(BaseModel):
    """One scorer of an ensemble: the arguments of `load`, its weight and its standardisation."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str
    weight: float
    mean: float
    std: float = Field(gt=0)
    checkpoint: str | None = None
    tokenizer: str | None = None
    model_configuration: str | None = Field(default=None, alias="model_config")
    options: dict[str, Any] = Field(default_factory=dict)


class EnsembleSpec(BaseModel):
    """Contents of an ensemble file."""

    model_config = ConfigDict(extra="forbid")

    reference_set: str = Field(min_length=1, description="what mean and std were measured on")
    members: list[MemberSpec] = Field(min_length=1)


class EnsembleScorer(BaseScorer):
    """See the module docstring.

    Args:
        scorers: the loaded members.
        spec: weights and standardisation, in the same order.
    """

    def __init__(self, scorers: Sequence[BaseScorer], spec: EnsembleSpec) -> None:
        self.name, self.scorers, self.spec = "ensemble", list(scorers), spec
        self.device = self.scorers[0].device
        identity = "\n".join([spec.model_dump_json(), *(scorer.version for scorer in self.scorers)])
        self.version = f"sha256:{hashlib.sha256(identity.encode()).hexdigest()[:12]}+reference={spec.reference_set}"

    @property
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return tuple(dict.fromkeys(p for scorer in self.scorers for p in scorer.preprocessors))

    def cut_prompts(self, prompts: Sequence[str]) -> tuple[int, int] | None:
        """See `BaseScorer`; of the member that reads least."""
        found = [cut for scorer in self.scorers if (cut := scorer.cut_prompts(prompts)) is not None]
        return max(found, key=lambda cut: (cut[0], -cut[1]), default=None)

    def score_prepared(self, prompts: Prompts, prepared: Prepared) -> Tensor:
        return self._combine([scorer.score_prepared(prompts, prepared) for scorer in self.scorers])

    def score_tensor(self, prompts: Prompts, pixels: Tensor) -> Tensor:
        return self._combine([scorer.score_tensor(prompts, pixels) for scorer in self.scorers])

    def _combine(self, parts: list[Tensor]) -> Tensor:
        members = zip(parts, self.spec.members, strict=True)
        return torch.stack([m.weight * (part.to(self.device) - m.mean) / m.std for part, m in members]).sum(0)


def load_ensemble(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    members: Sequence[Mapping[str, Any]] | None = None,
    reference_set: str | None = None,
) -> EnsembleScorer:
    """Load the members of a JSON file (`reference_set`, `members`), or of the same two options given
    directly.

    Relative checkpoint, tokenizer and model_config paths are looked up beside the file.
    """
    from reward_models.registry import load

    if (checkpoint is None) == (members is None):
        raise RewardModelError("ensemble needs either checkpoint=FILE.json or members=[...] with reference_set=...")
    content: dict[str, Any] = {"reference_set": reference_set, "members": members}
    root = None
    if checkpoint is not None:
        root, content = Path(checkpoint).expanduser().parent, read_json(checkpoint)
    try:
        spec = EnsembleSpec.model_validate(content)
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RewardModelError("the ensemble is not well specified", found=details) from error
    own = [member.name for member in spec.members if own_name(member.name)]
    if own and root is not None:
        raise RewardModelError(
            "an ensemble file cannot name a scorer of your own: a checkpoint must not run code",
            found=f"{checkpoint}: {', '.join(own)}",
            fix="give members=[...] in Python",
        )
    scorers = [
        load(
            member.name,
            _beside(root, member.checkpoint),
            device,
            dtype,
            _beside(root, member.tokenizer),
            _beside(root, member.model_configuration),
            **member.options,
        )
        for member in spec.members
    ]
    return EnsembleScorer(scorers, spec)


def _beside(root: Path | None, reference: str | None) -> str | Path | None:
    if root is not None and reference is not None and (root / reference).exists():
        return root / reference
    return reference


def fit_standardisation(
    scorer: BaseScorer, prompts: Prompts, images: Sequence[ImageSource], batch_size: int = 32
) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of a scorer on a reference set, for a `MemberSpec`."""
    scores = scorer.score(prompts, images, batch_size).double()
    if len(scores) < 2 or float(scores.std()) == 0.0:
        raise RewardModelError("a reference set needs at least two different scores", found=f"{len(scores)} images")
    return float(scores.mean()), float(scores.std())
