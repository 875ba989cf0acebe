"""For whom the pictures of a user adapter are made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i_align.backbones import identify_model
from t2i_align.errors import UserError
from t2i_align.personal.files import read_personal
from t2i_align.personal.pipeline import Personal, load_personal
from t2i_align.personal.who import tokens_of


@dataclass(frozen=True)
class UserChoice:
    """Who asks each model for pictures.

    Attributes:
        who: model name -> a user in one word, see ``personal.who``.
        scale: strength of the user's attention; 0 is the base.
        guidance_scale: s_u of user guidance; None guides the user as the prompt.
    """

    who: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    guidance_scale: float | None = None

    def open(self, models: Mapping[str, str | Path], base: str | Path | None) -> OpenUsers:
        """Look everybody up, before the first picture is made.

        Raises:
            UserError: a user adapter without a user, a user for another model, or a user who cannot be understood.
        """
        if unknown := sorted(set(self.who) - set(models)):
            raise UserError("A user is given for a model that is not compared.", ", ".join(unknown), str(list(models)))
        if not self.who and (self.scale != 1.0 or self.guidance_scale is not None):
            raise UserError("--user-scale and --user-guidance need a --user.", "no --user", "name one, or remove them")
        opened = OpenUsers(self)
        for name, model in models.items():
            source = identify_model(str(model), None if base is None else str(base))
            if source.kind != "user" and name in self.who:
                raise UserError("This model knows no users.", f"{name}: {model}", "leave --user out for it")
            if source.kind != "user" or source.weights is None:
                continue
            if name not in self.who:
                raise UserError(
                    "This model makes pictures for users; say for whom.",
                    f"{name}: {model}",
                    f"--user {name}=pairs.parquet#USER, a name, or null for the base model",
                )
            saved = read_personal(source.weights)
            opened.folders[name] = source.weights
            opened.tokens[name] = tokens_of(Personal(None, saved.adapter, saved.users), self.who[name])
        return opened


@dataclass
class OpenUsers:
    """Users who were found.

    Attributes:
        choice: what was asked for.
        tokens: model name -> tokens ``[M, W]``.
        folders: model name -> folder of its user adapter.
    """

    choice: UserChoice
    tokens: dict[str, Tensor] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)

    def identity(self, name: str) -> tuple[str, str]:
        """In words, and a hash of what the pictures depend on; both empty where a model has no user."""
        if name not in self.tokens:
            return "", ""
        choice = self.choice
        digest = hashlib.blake2b(f"{choice.scale} {choice.guidance_scale}".encode(), digest_size=8)
        digest.update(self.tokens[name].detach().float().numpy().tobytes())
        return f"; for user {choice.who[name]}, scale {choice.scale:g}", f" user {digest.hexdigest()}"

    def drawing(self, pipeline: Any, name: str) -> AbstractContextManager[None]:
        """The context in which a model's pictures are made; puts its adapter into the pipeline."""
        if name not in self.tokens:
            return nullcontext()
        personal = load_personal(pipeline, self.folders[name])
        return personal.user(self.tokens[name], self.choice.scale, self.choice.guidance_scale)
