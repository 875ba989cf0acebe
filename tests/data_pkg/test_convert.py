"""Every format becomes the same pairs in parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from t2i_align.data.convert import ROWS_PER_GROUP, convert
from t2i_align.data.pair_source import PairSource
from t2i_align.data.sources import open_source
from t2i_align.errors import UserError

from .make import data_config, pickapic, png, write_jsonl, write_parquet


def records(source: PairSource) -> list:
    """All records."""
    return [source[index] for index in range(len(source))]


def test_jsonl_round_trip(tmp_path: Path) -> None:
    rows = [
        {"id": "p", "caption": "a", "image_0": "0.png", "image_1": "1.png", "preferred": 1, "user_id": "u",
         "weight": 2.0, "caption_1": "b", "margins": {"hps": 0.5}},
        {"id": "q", "caption": "a", "image_0": "2.png", "image_1": "1.png", "preferred": "tie",
         "margins": {"hps": -0.25}},
        {"id": "r", "caption": "c", "image_0": "2.png", "image_1": "0.png", "label_0": 0.7, "margins": {"hps": 1}},
    ]  # fmt: skip
    source = write_jsonl(tmp_path / "p.jsonl", rows)
    report = convert(str(source), tmp_path / "out/p.parquet")
    assert (report.pairs, report.skipped) == (3, [])
    before, after = (open_source(data_config(file, ties="soft")) for file in (source, report.output))
    assert records(before) == records(after)
    table = pq.read_table(report.output).to_pydict()
    assert table["label_1"] == pytest.approx([1.0, 0.5, 0.3])
    assert table["num_example_per_prompt"] == [2, 2, 1]
    assert table["best_image_uid"] == [table["image_1_uid"][0], "none", table["image_0_uid"][2]]
    assert table["are_different"] == [True] * 3 and table["image_1_uid"][0] == table["image_1_uid"][1]


def test_ranked_lists_become_weighted_pairs(tmp_path: Path) -> None:
    lists = [
        {"prompt": "a", "images": ["0.png", "1.png", "2.png"], "scores": [1, 2, 3]},
        {"prompt": "b", "images": ["0.png", "1.png"], "scores": [1, 2]},
    ]
    source = write_jsonl(tmp_path / "r.jsonl", lists)
    after = open_source(data_config(convert(str(source), tmp_path / "r.parquet").output))
    assert records(open_source(data_config(source))) == records(after)


def test_row_groups_are_small(tmp_path: Path) -> None:
    columns = pickapic([1.0] * 150)
    columns["jpg_0"] = columns["jpg_1"] = [png(0)] * 150
    source = write_parquet(tmp_path / "p.parquet", columns, rows_per_group=150)
    metadata = pq.ParquetFile(convert(str(source), tmp_path / "q.parquet").output).metadata
    assert metadata.num_rows == 150 and metadata.row_group(0).num_rows == ROWS_PER_GROUP


def test_undecodable_pictures(tmp_path: Path) -> None:
    source = str(write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0], jpg_0=[b"x", png(1)])))
    with pytest.raises(UserError, match="cannot be decoded") as error:
        convert(source, tmp_path / "q.parquet")
    assert "p.parquet row 0" in error.value.found and not list(tmp_path.glob("q*"))
    report = convert(source, tmp_path / "q.parquet", skip_undecodable=True)
    assert report.pairs == 1 and "p.parquet row 0" in report.render()


def test_output_must_be_new_and_parquet(tmp_path: Path) -> None:
    source = str(write_parquet(tmp_path / "p.parquet", pickapic([1.0])))
    with pytest.raises(UserError, match="exists already"):
        convert(source, source)
    with pytest.raises(UserError, match=r"must be a .parquet file"):
        convert(source, tmp_path / "folder")
