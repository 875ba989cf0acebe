"""Pictures for synthetic users, every arm drawn once and kept: what the taste study measures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reward_models.files import complete_file
from reward_models.text_tables import split_lines
from t2i_align.backbones import identify_model, load_for_sampling
from t2i_align.errors import UserError
from t2i_align.evaluation.sampling import sample_images
from t2i_align.personal.features import open_extractor
from t2i_align.personal.mixtures import interpolate
from t2i_align.personal.pair_features import pair_features
from t2i_align.personal.pipeline import Personal, load_personal
from t2i_align.personal.who import answers_of
from t2i_align.randomness import address_hash
from t2i_align.shapes.users import User, make_user

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is sampled.

    Attributes:
        prompts: of the held-out ones.
        shots: pairs that each user shows.
        steps: of the walk between two users, both included.
        scale: of the adapter.
        num_inference_steps, guidance_scale, seed: of the sampler.
    """

    prompts: int = 24
    shots: int = 4
    steps: int = 7
    scale: float = 1.0
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    seed: int = 0


class Study:
    """Draws the pictures of every arm once, and keeps them in `folder`.

    Args:
        run: run or export folder of a user adapter.
        data: what ``shapes user-pairs`` wrote.
        folder: of the study; drawn arms are found again.
        settings: see `Settings`.
    """

    def __init__(self, run: str, data: Path, folder: Path, settings: Settings) -> None:
        self.folder, self.settings, self._run = folder, settings, run
        texts = split_lines((data / "prompts" / "heldout.txt").read_text(encoding="utf-8"))
        self.prompts = texts[: settings.prompts]
        self.seeds = [address_hash(settings.seed, "taste_study", i) % 2**32 for i in range(len(self.prompts))]
        known = json.loads((data / "users.json").read_text(encoding="utf-8"))
        self.users = [make_user(int(name), known["seed"], known["tastes"]) for name in known["unseen"]]
        self._pairs = str(data / "pairs" / "heldout.parquet")
        source = identify_model(run)
        if source.kind != "user" or source.weights is None:
            raise UserError("This run has no user adapter.", run, "train one: configs/shapes/ppd.yaml")
        self._base = source.base.pretrained_model_name_or_path
        self._pipeline: Any = load_for_sampling(run, None, torch.float32, "cpu")
        self._personal: Personal = load_personal(self._pipeline, source.weights)
        (folder / "arms").mkdir(parents=True, exist_ok=True)

    def tokens(self, user: User, opposite: bool = False) -> torch.Tensor:
        """Tokens ``[M, W]`` of a user who shows the first pairs of the file."""
        source = answers_of(self._pairs, str(user.user_id))
        source = source.without(range(self.settings.shots, len(source)), "not shown")
        features = pair_features(source, open_extractor(self._personal.adapter.config.extractor))
        first_wins = [bool((label > 0.5) != opposite) for label in source.labels()]
        return self._personal.add_pairs("shown", *features.shown(list(range(len(source))), first_wins))

    def own(self, user: User, opposite: bool = False) -> list[Image.Image]:
        """Pictures for a user, one per prompt."""
        word = f"{'opposite' if opposite else 'own'}-{user.user_id}"
        return self._arm(word, lambda: self._for(self.tokens(user, opposite)))

    def base(self) -> list[Image.Image]:
        """Pictures of the base model."""
        return self._arm("base", nullcontext)

    def nobody(self) -> list[Image.Image]:
        """Pictures for the null user."""
        return self._arm("null", lambda: self._for(self._personal.tokens("null")))

    def between(self, first: User, second: User) -> list[list[Image.Image]]:
        """Pictures for users between two, per step."""
        walk = interpolate(self.tokens(first), self.tokens(second), self.settings.steps)
        return [
            self._arm(f"between-{first.user_id}-{second.user_id}-{step}", partial(self._for, tokens))
            for step, tokens in enumerate(walk)
        ]

    def other(self, word: str, model: str) -> list[Image.Image]:
        """Pictures of another model on the same noise."""
        return self._arm(word, nullcontext, lambda: load_for_sampling(model, self._base, torch.float32, "cpu"))

    def _for(self, tokens: torch.Tensor) -> AbstractContextManager[None]:
        return self._personal.user(tokens, self.settings.scale)

    def _arm(
        self, word: str, context: Callable[[], AbstractContextManager[None]], model: Callable[[], Any] | None = None
    ) -> list[Image.Image]:
        path = self.folder / "arms" / f"{word}.npy"
        if not path.is_file():
            with context():
                images = sample_images(
                    self._pipeline if model is None else model(),
                    self.prompts,
                    self.seeds,
                    num_inference_steps=self.settings.num_inference_steps,
                    guidance_scale=self.settings.guidance_scale,
                    batch_size=len(self.prompts),
                )
            with complete_file(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, np.stack([np.asarray(image) for image in images]))
            logger.info("%s: %d pictures", word, len(images))
        return [Image.fromarray(array) for array in np.load(path)]


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder of a study, or find it again with the same settings.

    Raises:
        UserError: it holds pictures of others.
    """
    path = folder / "settings.json"
    text = json.dumps(settings, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError("The folder holds a study with other settings.", str(folder), "choose another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
