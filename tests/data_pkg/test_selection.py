"""Ties, hold-out, limit and the shuffled-label control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from t2i_align.data.selection import normalise
from t2i_align.data.sources import has_heldout, open_source
from t2i_align.errors import UserError

from .make import data_config, pickapic, write_parquet


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Five pairs, two of them ties."""
    return write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.5, 0.0, 0.5, 0.75]))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """200 pairs over 20 prompts, spelt in two ways."""
    captions = [f"Prompt  {i % 20}" if i % 2 else f"prompt {i % 20} " for i in range(200)]
    columns = pickapic([1.0] * 200, caption=captions)
    columns["jpg_0"] = columns["jpg_1"] = [b"-"] * 200
    return write_parquet(tmp_path / "many.parquet", columns)


class TestTies:
    def test_dropped_by_default(self, pairs: Path) -> None:
        source = open_source(data_config(pairs))
        assert source.labels().tolist() == [1.0, 0.0, 0.75]
        assert source.pair_ids() == ["0", "2", "4"]
        assert source.left_out == {"tie": 2}

    def test_soft(self, pairs: Path) -> None:
        assert open_source(data_config(pairs, ties="soft")).labels().tolist() == [1.0, 0.5, 0.0, 0.5, 0.75]

    def test_zero_weight(self, pairs: Path) -> None:
        source = open_source(data_config(pairs, ties="zero_weight"))
        assert source.weights().tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]

    def test_coin_depends_on_the_seed_and_on_the_pair_alone(self, tmp_path: Path) -> None:
        columns = pickapic([0.5] * 300)
        columns["jpg_0"] = columns["jpg_1"] = [b"-"] * 300
        file = write_parquet(tmp_path / "p.parquet", columns)
        labels = open_source(data_config(file, ties="coin"), seed=1).labels()
        assert set(labels) == {0.0, 1.0} and 0.4 < labels.mean() < 0.6
        assert (labels == open_source(data_config(file, ties="coin"), seed=1).labels()).all()
        assert (labels != open_source(data_config(file, ties="coin"), seed=2).labels()).any()
        fewer = open_source(data_config(file, ties="coin", max_pairs=50), seed=1).labels()
        assert (fewer == labels[:50]).all()

    def test_nothing_but_ties(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "p.parquet", pickapic([0.5, 0.5]))
        with pytest.raises(UserError, match="no usable training pairs") as error:
            open_source(data_config(file))
        assert error.value.found == "2 tie"


def test_max_pairs_counts_usable_pairs(pairs: Path) -> None:
    source = open_source(data_config(pairs, max_pairs=2))
    assert source.pair_ids() == ["0", "2"]
    assert source.left_out == {"tie": 2, "beyond max_pairs": 1}


class TestShuffledLabels:
    def test_fair_per_seed_and_addressed(self, many: Path) -> None:
        first, second = (open_source(data_config(many, shuffle_labels=True), seed=seed).labels() for seed in (1, 2))
        assert 0.4 < first.mean() < 0.6 and (first != second).any()
        assert (first == open_source(data_config(many, shuffle_labels=True), seed=1).labels()).all()

    def test_confidence_and_held_out_labels_stay(self, pairs: Path, many: Path) -> None:
        labels = open_source(data_config(pairs, shuffle_labels=True, ties="soft")).labels()
        assert (np.maximum(labels, 1 - labels) == [1.0, 0.5, 1.0, 0.5, 0.75]).all()
        config = data_config(many, shuffle_labels=True, heldout_fraction=0.3)
        assert (open_source(config, "heldout").labels() == 1.0).all()

    def test_margins_follow_the_new_winner(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "p.parquet", pickapic([1.0] * 20, margins=[{"a": 2.0}] * 20))
        source = open_source(data_config(file, shuffle_labels=True))
        assert {(source[i].label_0, source[i].margins["a"]) for i in range(20)} == {(1.0, 2.0), (0.0, -2.0)}


class TestHoldOut:
    def test_by_prompt_never_by_row(self, many: Path) -> None:
        config = data_config(many, heldout_fraction=0.25)
        training, held_out = open_source(config), open_source(config, "heldout")
        prompts = [{normalise(caption) for caption in source.captions()} for source in (training, held_out)]
        assert not prompts[0] & prompts[1]
        assert (len(prompts[0]), len(prompts[1])) == (15, 5)
        assert len(training) + len(held_out) == 200
        assert not set(training.pair_ids()) & set(held_out.pair_ids())

    def test_same_split_whatever_the_seed(self, many: Path) -> None:
        config = data_config(many, heldout_fraction=0.25)
        assert open_source(config, seed=1).pair_ids() == open_source(config, seed=2).pair_ids()

    def test_own_source_without_training_prompts(self, tmp_path: Path) -> None:
        training = write_parquet(tmp_path / "a.parquet", pickapic([1.0, 0.5]))
        captions = ["PROMPT  1", "new", "newer"]
        held_out = write_parquet(tmp_path / "b.parquet", pickapic([1.0, 0.0, 1.0], caption=captions))
        config = data_config(training, heldout_source=str(held_out), max_pairs=1)
        source = open_source(config, "heldout")
        assert source.captions() == ["new", "newer"]
        assert source.left_out == {"prompt is in the training set": 1}

    def test_nothing_left(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", pickapic([1.0, 0.0]))
        with pytest.raises(UserError, match="no usable held-out pairs") as error:
            open_source(data_config(file, heldout_source=str(file)), "heldout")
        assert "2 prompt is in the training set" in error.value.found

    def test_too_few_prompts(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", pickapic([1.0, 0.0], caption=["a", "A "]))
        with pytest.raises(UserError, match="Too few different prompts"):
            open_source(data_config(file, heldout_fraction=0.5))

    def test_both_ways_at_once(self, pairs: Path) -> None:
        with pytest.raises(UserError, match="Both data.heldout_source and data.heldout_fraction"):
            open_source(data_config(pairs, heldout_fraction=0.5, heldout_source=str(pairs)))

    def test_none(self, pairs: Path) -> None:
        assert not has_heldout(data_config(pairs))
        with pytest.raises(UserError, match="No pairs are held out"):
            open_source(data_config(pairs), "heldout")


def test_fingerprint_covers_labels_order_and_weights(pairs: Path) -> None:
    def fingerprint(**options: object) -> str:
        return open_source(data_config(pairs, **options)).fingerprint

    base = fingerprint()
    assert fingerprint() == base
    others = [fingerprint(ties="soft"), fingerprint(ties="zero_weight"), fingerprint(max_pairs=2)]
    assert len({base, *others}) == 4
