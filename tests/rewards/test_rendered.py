"""Drawn pairs: deterministic, labelled by the oracle, without the held-out prompts."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from t2i_align.data.sources import open_table
from t2i_align.rewards.pairs import everything
from t2i_align.rewards.rendered import draw, run
from t2i_align.shapes.pairs import TIE_MARGIN

from .test_label import oracle_gaps


def test_pairs_are_what_the_oracle_says(tmp_path):
    path = run(tmp_path / "pairs.parquet", 6, seed=1)
    pairs = everything(open_table(str(path)))
    gap = oracle_gaps(path)
    expected = np.where(np.abs(gap) <= TIE_MARGIN, 0.5, gap > 0)
    np.testing.assert_array_equal(pairs.labels(), expected)
    for name in ("semantic", "aesthetic", "detail"):
        stored = pairs.table.columns.gaps[f"oracle:{name}"]
        np.testing.assert_allclose(stored, oracle_gaps(path, name), atol=1e-6)


def test_pair_i_does_not_depend_on_the_number_of_pairs(tmp_path):
    few, more = (pq.read_table(run(tmp_path / f"{count}.parquet", count)).to_pylist() for count in (2, 3))
    assert more[:2] == few and more[2]["jpg_0"] != few[0]["jpg_0"]


def test_held_out_prompts_are_not_drawn():
    text = draw(np.random.default_rng(0))[0]
    assert draw(np.random.default_rng(0), frozenset({text}))[0] != text


@pytest.mark.parametrize("seed", range(3))
def test_both_pictures_have_the_size_of_the_world(seed):
    from t2i_align.data.pictures import decode

    assert {decode(data).size for data in draw(np.random.default_rng(seed))[1:]} == {(64, 64)}
