"""Prompts to token ids, exactly as each scorer was trained.

Padding is invisible to a CLIP text embedding (causal attention, pooled at the end token) but not to MPS, which
attends to all 77 positions; so every tokenizer here returns a fixed length and its padding id is part of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from reward_models.errors import RewardModelError
from reward_models.loading import resolve_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenise: TypeAlias = Callable[[list[str]], Tensor]

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer_config.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder carries its own tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def load_hf_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """A transformers tokenizer from a folder or a hub id."""
    from transformers import AutoTokenizer

    folder = resolve_folder(source, weights=False)
    if not has_tokenizer(folder):
        raise RewardModelError(
            "the folder holds no tokenizer",
            found=str(folder),
            fix="pass tokenizer=FOLDER with tokenizer.json (or vocab.json and merges.txt)",
        )
    return AutoTokenizer.from_pretrained(folder)


class ClipTokenise:
    """CLIP's BPE through transformers: ids [P, length], truncated, end token kept, padded.

    Args:
        tokenizer: a CLIP tokenizer (start token, words, end token).
        length: context length, 77 for all published models.
        pad_id: id of the padding; None takes the tokenizer's (the end token for the laion ViT-H/14).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, pad_id: int | None = None) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.pad_id = tokenizer.pad_token_id if pad_id is None else pad_id

    def __call__(self, prompts: list[str]) -> Tensor:
        rows = self.tokenizer(prompts, truncation=True, max_length=self.length)["input_ids"]
        ids = torch.full((len(prompts), self.length), self.pad_id, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids

    def lengths(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, uncut; those beyond `length` are not read."""
        return [len(ids) for ids in self.tokenizer(prompts, verbose=False)["input_ids"]] if prompts else []

    def check(self, vocab_size: int, eos_token_id: int) -> None:
        """Raise where a text tower would silently pool the wrong position.

        transformers pools at the highest id when the configuration says 2 (all older ones do), otherwise at the first
        id equal to `eos_token_id`; open_clip always pools at the highest id.
        """
        end, top = self.tokenizer.eos_token_id, max(self.tokenizer.get_vocab().values())
        if top >= vocab_size:
            raise RewardModelError(
                "the tokenizer does not fit the text tower",
                found=f"token ids up to {top}, the model knows {vocab_size}",
                fix="pass the tokenizer the model was trained with",
            )
        wrong = end != top if eos_token_id == 2 else end != eos_token_id
        if wrong:
            raise RewardModelError(
                "the text tower would pool at the wrong token",
                found=f"tokenizer end token {end} (highest id {top}), model eos_token_id {eos_token_id}",
                fix="pass the tokenizer the model was trained with, or correct text_config.eos_token_id",
            )


class OpenClipTokenise:
    """open_clip's own BPE (49,408 entries), zero padded; the one HPS was trained with.

    Args:
        length: context length.
    """

    def __init__(self, length: int) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.tokenizer, self.length = SimpleTokenizer(context_length=length), length

    def __call__(self, prompts: list[str]) -> Tensor:
        return self.tokenizer(prompts)

    def lengths(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, uncut, start and end among them."""
        return [len(self.tokenizer.encode(prompt)) + 2 for prompt in prompts]


class BertTokenise:
    """BERT word pieces as BLIP uses them: [CLS] words [SEP], padded to `length`.

    Returns [P, 2, length]: ids and attention mask, stacked so that a prompt stays one row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, length: int) -> None:
        if "[DEC]" not in tokenizer.get_vocab() and len(tokenizer) + 2 == vocab_size:
            # BLIP adds two tokens to bert-base-uncased; a prompt that spells one out must map to it.
            tokenizer.add_special_tokens({"bos_token": "[DEC]"})
            tokenizer.add_tokens(["[ENC]"], special_tokens=True)
        top = max(tokenizer.get_vocab().values())
        if top >= vocab_size:
            raise RewardModelError(
                "the tokenizer does not fit the text encoder",
                found=f"token ids up to {top}, the model knows {vocab_size}",
                fix="pass bert-base-uncased, or the tokenizer the model was trained with",
            )
        self.tokenizer, self.length = tokenizer, length

    def lengths(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, uncut, [CLS] and [SEP] among them."""
        return [len(ids) for ids in self.tokenizer(prompts, verbose=False)["input_ids"]] if prompts else []

    def __call__(self, prompts: list[str]) -> Tensor:
        arguments: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self.length}
        encoded = self.tokenizer(prompts, return_tensors="pt", **arguments)
        return torch.stack([encoded["input_ids"], encoded["attention_mask"]], dim=1)
