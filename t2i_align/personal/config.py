"""Sizes and choices of a user adapter, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from t2i_align.errors import UserError

FORMAT = "t2i_align user adapter 1"
EncoderKind = Literal["pair_set", "table", "external", "reward_vector"]
Start = Literal["values", "gate"]
NULL_USER = "null"


@dataclass(frozen=True)
class PersonalConfig:
    """A user adapter but for its weights.

    Attributes:
        encoder: where a user's tokens come from, see ``encoders``.
        num_tokens: M; ``external`` takes one token per row of the array instead and does not read it.
        token_width: W. SDXL has 83,200 channels of cross-attention outputs, so W = 256 means 43 M weights in the
            attention layers, and W = 2048, that of its text, 341 M.
        start: what is zero before training: ``values`` (the projection V') or ``gate`` (one number per layer). With
            ``values`` the first gradient already knows which tokens belong to which picture; with ``gate`` it is
            one number per layer, and V' starts at random.
        features: width of the pictures' feature vectors (``pair_set``) or of an array's rows (``external``).
        caption_features: width of the captions' feature vectors (``pair_set``).
        hidden: inner width of ``pair_set`` and ``reward_vector``.
        names: users of a ``table``, rewards of a ``reward_vector``.
        extractor: word that names the features of ``pair_set`` (see ``features``), kept so that new users can be shown.
    """

    encoder: EncoderKind
    num_tokens: int = 4
    token_width: int = 256
    start: Start = "values"
    features: int = 0
    caption_features: int = 0
    hidden: int = 256
    names: tuple[str, ...] = ()
    extractor: str = ""

    def __post_init__(self) -> None:
        _one_of("encoder", self.encoder, get_args(EncoderKind))
        _one_of("start", self.start, get_args(Start))
        needed = ["num_tokens", "token_width"]
        needed += {"pair_set": ["features", "caption_features", "hidden"], "external": ["features"]}.get(
            self.encoder, []
        )
        for name in needed:
            if getattr(self, name) < 1:
                found = f"{name} {getattr(self, name)}"
                raise UserError(f"A user adapter with encoder {self.encoder} needs {name} >= 1.", found)
        if self.encoder in ("table", "reward_vector"):
            self._check_names()

    def _check_names(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names) or NULL_USER in self.names:
            raise UserError(
                f"The encoder {self.encoder} needs names, each once, and none may be '{NULL_USER}'.",
                ", ".join(self.names[:8]) or "no names",
                "the null user is always included",
            )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> PersonalConfig:
        """The inverse.

        Raises:
            UserError: another format, or keys that differ.
        """
        given = {name: value for name, value in values.items() if name != "format"}
        if values.get("format") != FORMAT or set(given) != {field.name for field in fields(cls)}:
            raise UserError(
                "This is not the configuration of a user adapter of this version.",
                f"{source}: format {values.get('format')!r}, keys {sorted(given)}",
                "give a folder that save_personal wrote",
            )
        return cls(**{**given, "names": tuple(given["names"])})


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"Unknown {name} of a user adapter.", repr(value), f"one of {', '.join(known)}")
