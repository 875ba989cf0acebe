"""The vocabulary of the shapes world as CLIP tokenizer files.

Byte-level BPE, so that any text a user types can be encoded; the words that captions use are one token each.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from .world import VALUES

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MODEL_MAX_LENGTH = 32
PLAIN_WORDS = ("a", "an", "on", "in", "at", "the", "shape", "background", "center", "picture", "of", "and", "with")


def world_words() -> list[str]:
    """Every word that a caption can hold, and a few that people write around them, sorted."""
    named = {word for values in VALUES.values() for value in values for word in value.split()}
    return sorted(named | set(PLAIN_WORDS))


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges after which each of `words` is a single token.

    Merges the most frequent neighbouring pair (ties: the alphabetically first) until no word has two symbols.
    """
    spellings = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in spellings):
        counts: dict[tuple[str, str], int] = {}
        for symbols in spellings:
            for pair in zip(symbols, symbols[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spellings = [_merge(symbols, best) for symbols in spellings]
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer; the end token has the highest id, and pads, as in CLIP."""
    letters = sorted(ByteLevel.alphabet())
    merges = learn_merges(world_words())
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MODEL_MAX_LENGTH)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write `tokenizer` with the two files of the classic layout (vocab.json, merges.txt) beside tokenizer.json."""
    tokenizer.save_pretrained(folder)
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(f"{a} {b}" for a, b in learn_merges(world_words()))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
