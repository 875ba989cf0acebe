"""Preference pairs: schema, labels, splits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from t2i_align.shapes.pairs import SCHEMA, build_pairs, encode_jpeg, preference, run
from t2i_align.shapes.render import render
from t2i_align.shapes.sampling import load_pipeline, sample
from t2i_align.shapes.world import sample_scene


@pytest.mark.parametrize(
    ("first", "second", "label"), [(0.9, 0.5, 1.0), (0.5, 0.9, 0.0), (0.70, 0.69, 0.5), (0.69, 0.70, 0.5)]
)
def test_preference(first: float, second: float, label: float) -> None:
    assert preference(first, second, tie_margin=0.02) == label


def test_jpeg_keeps_the_picture() -> None:
    image = render(sample_scene(np.random.default_rng(0)))
    file = encode_jpeg(image)
    again = np.asarray(Image.open(io.BytesIO(file)), dtype=float)
    assert np.abs(again - np.asarray(image, dtype=float)).mean() < 2.0
    assert len(file) < 4000


def test_rows(tiny_run: Path) -> None:
    pipeline = load_pipeline(tiny_run / "base")
    prompts = ["a red star", "a blue ring", "a shape"]
    rows = build_pairs(pipeline, prompts, 5, seed=0, tie_margin=-1.0)
    assert [row["caption"] for row in rows] == [*prompts, *prompts[:2]]
    assert [row["num_example_per_prompt"] for row in rows] == [2, 2, 1, 2, 2]
    assert len({uid for row in rows for uid in (row["image_0_uid"], row["image_1_uid"])}) == 10
    assert len({row["ranking_id"] for row in rows}) == 5
    for row in rows:
        assert list(row) == SCHEMA.names
        assert row["label_0"] + row["label_1"] == 1.0
        assert row["best_image_uid"] == row["image_0_uid" if row["label_0"] == 1.0 else "image_1_uid"]
    ties = build_pairs(pipeline, prompts, 3, seed=0, tie_margin=1.0)
    assert all(row["label_0"] == row["label_1"] == 0.5 and row["best_image_uid"] == "" for row in ties)
    assert [row["image_0_uid"] for row in ties] == [row["image_0_uid"] for row in rows[:3]]


def test_the_same_pictures_at_any_count(tiny_run: Path) -> None:
    """Seeds and prompts decide; another batch rounds differently, by less than a level of 255 before compression."""
    pipeline = load_pipeline(tiny_run / "base")
    prompts, seeds = ["a red star", "a blue ring", "a shape"], [7, 8, 9]
    many, few = (sample(pipeline, prompts[:count], seeds[:count]) for count in (3, 1))
    difference = np.asarray(many[0], dtype=int) - np.asarray(few[0], dtype=int)
    assert np.abs(difference).max() <= 1
    assert np.abs(np.asarray(many[0], dtype=int) - np.asarray(many[1], dtype=int)).max() > 1


def test_run_writes_disjoint_splits(tiny_run: Path, tmp_path: Path) -> None:
    run(tiny_run / "base", tmp_path, num_train=3, num_heldout=2, seed=0)
    tables = {split: pq.read_table(tmp_path / "pairs" / f"{split}.parquet") for split in ("train", "heldout")}
    assert all(table.schema.equals(SCHEMA) for table in tables.values())
    assert (tables["train"].num_rows, tables["heldout"].num_rows) == (3, 2)
    prompts = {s: (tmp_path / "prompts" / f"{s}.txt").read_text().splitlines() for s in tables}
    assert not set(prompts["train"]) & set(prompts["heldout"])
    for split, table in tables.items():
        assert set(table["caption"].to_pylist()) <= set(prompts[split])
