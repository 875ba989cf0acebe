"""The vocabulary: one token per word of the world, and no text that cannot be encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from t2i_align.shapes.tokenizer import MODEL_MAX_LENGTH, build_tokenizer, learn_merges, save_tokenizer, world_words
from t2i_align.shapes.world import caption, sample_scene


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(), folder)
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
    return CLIPTokenizer.from_pretrained(folder)


def test_merges_of_two_words_by_hand() -> None:
    assert learn_merges(["ab", "cab"]) == [("a", "b</w>"), ("c", "ab</w>")]


def test_every_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for word in world_words():
        assert len(tokenizer(word).input_ids) == 3, word  # start, word, end


def test_captions_fit_and_are_decoded(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        text = caption(sample_scene(rng))
        ids = tokenizer(text).input_ids
        assert len(ids) <= MODEL_MAX_LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == text


@pytest.mark.parametrize("text", ["", "   ", "Ünïcode 日本 🙂", "zebra's 42!?", "<|endoftext|>", "x" * 500, "\n\t"])
def test_any_text_survives(tokenizer: CLIPTokenizer, text: str) -> None:
    batch = tokenizer(text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    assert len(batch.input_ids) == MODEL_MAX_LENGTH
    assert batch.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in batch.input_ids
    assert max(batch.input_ids) < len(tokenizer)


def test_the_end_token_has_the_highest_id(tokenizer: CLIPTokenizer) -> None:
    """Old CLIP code pools at the highest id, new code at `eos_token_id`: both must find the same place."""
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tokenizer(build_tokenizer(), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
