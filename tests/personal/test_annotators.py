"""How far the users of a source of pairs agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reward_models.personal.disagreement import disagreement
from t2i_align.cli import app
from t2i_align.errors import UserError
from t2i_align.personal.annotators import compare_annotators
from tests.training.runs import write_pairs

RATINGS = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 0.5, 1], [0, 1, 1, 0, 1]])  # of three people on five pairs


def write_ratings(path: Path) -> Path:
    """Every second answer with the pictures on the other sides."""
    pairs = pq.read_table(write_pairs(path, count=5)).to_pylist()
    rows = []
    for user, ratings in enumerate(RATINGS.tolist()):
        for pair, rating in zip(pairs, ratings, strict=True):
            row = {**pair, "ranking_id": len(rows), "user_id": user, "label_0": rating, "label_1": 1 - rating}
            if len(rows) % 2:
                row |= {"jpg_0": row["jpg_1"], "jpg_1": row["jpg_0"]}
                row |= {"label_0": row["label_1"], "label_1": row["label_0"]}
            rows.append(row)
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "ranking_id": 99}]), path)
    return path


def test_alpha_of_a_source_whatever_the_sides(tmp_path: Path) -> None:
    pairs = write_ratings(tmp_path / "pairs.parquet")
    found = compare_annotators(str(pairs))
    expected = {level: disagreement(RATINGS, level, mirrored=True).alpha for level in ("ordinal", "nominal")}
    assert found.found.alpha.value == pytest.approx(expected["ordinal"].value)
    assert (found.pairs, found.found.units, found.repeated, found.kept) == (5, 5, 1, 1)
    result = CliRunner().invoke(app, ["personal", "disagreement", str(pairs), "--level", "nominal"])
    assert result.exit_code == 0, result.output
    assert f"alpha {expected['nominal'].value:.3f}" in result.output and "3 annotators, 5 pairs" in result.output
    assert "most often with the majority of the others: 0 100%" in result.output


def test_pairs_that_one_person_each_has_seen_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answered by two users"):
        compare_annotators(str(write_pairs(tmp_path / "pairs.parquet", count=6)))
