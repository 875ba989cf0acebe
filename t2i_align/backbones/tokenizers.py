"""The tokenizers of a model alone, to count before anything is loaded: how long captions are and where they are cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_align.errors import UserError

if TYPE_CHECKING:
    from t2i_align.config.schema import ModelConfig

PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))  # of every pipeline that is supported
BUILT_IN = "shapes:"


@dataclass(frozen=True)
class PromptLength:
    """One tokenizer of a model.

    Attributes:
        name: its folder.
        limit: tokens that the text encoder reads, start and end among them.
        tokenizer: of transformers.
    """

    name: str
    limit: int
    tokenizer: Any

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of every text, uncut."""
        return [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]] if texts else []


def prompt_lengths(model: str, revision: str | None = None) -> list[PromptLength]:
    """The tokenizers of a model folder, a hub id or ``shapes:base``; only their files are read.

    Raises:
        UserError: there are none.
    """
    from transformers import AutoConfig, CLIPTokenizer

    source = _source(model)
    found = []
    for name, encoder in PARTS:
        if isinstance(source, Path) and not (source / name).is_dir():
            continue
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source, subfolder=name, revision=revision)
            config = AutoConfig.from_pretrained(source, subfolder=encoder, revision=revision)
        except (OSError, ValueError, TypeError) as error:  # TypeError: transformers, of a folder without a vocabulary
            if name != PARTS[0][0]:
                continue  # Stable Diffusion 1 and 2 have one
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise _none(model, reason) from error
        limit = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
        found.append(PromptLength(name, limit, tokenizer))
    if not found:
        raise _none(model, f"no {PARTS[0][0]}/ in {source}")
    return found


def of_model(config: ModelConfig) -> list[PromptLength]:
    """See `prompt_lengths`."""
    return prompt_lengths(config.pretrained_model_name_or_path, config.revision)


def _source(model: str) -> str | Path:
    if model.startswith(BUILT_IN):
        from t2i_align.shapes.assets import resolve

        return Path(resolve(model))
    path = Path(model).expanduser()
    return path if path.exists() else model


def _none(model: str, found: str) -> UserError:
    return UserError(f"The tokenizer of {model} cannot be read.", found, "give a diffusers folder or a hub id")
