"""Parquet files behind a URL, on a file system in memory: the pairs are those of the same files on disk."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch

from t2i_align.data import cache
from t2i_align.data.cache import build_cache, open_readers
from t2i_align.data.sources import open_source, open_table
from t2i_align.data.transform import Geometry
from t2i_align.errors import UserError

from .make import FakeBackbone, data_config, pickapic, write_parquet


@pytest.fixture
def store(tmp_path: Path):
    """(folder on disk, URL of the same files in memory)."""
    folder = tmp_path / "pairs"
    for part, labels in enumerate(([1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.5])):
        columns = pickapic(labels, ranking_id=[10 * part + row for row in range(len(labels))])
        write_parquet(folder / f"train-{part:05d}-of-00002.parquet", columns, rows_per_group=2)
    write_parquet(folder / "test-00000-of-00001.parquet", pickapic([1.0]))
    system = fsspec.filesystem("memory")
    system.put(f"{folder}/", "/bucket/pairs/", recursive=True)
    yield folder, "memory://bucket/pairs"
    system.rm("/bucket", recursive=True)


def test_the_pairs_are_those_of_the_files_on_disk(store) -> None:
    folder, url = store
    local, remote = open_table(str(folder)), open_table(url)
    assert remote.columns.pair_ids == local.columns.pair_ids and remote.columns.captions == local.columns.captions
    assert [remote.images(row) for row in (7, 0, 4)] == [local.images(row) for row in (7, 0, 4)]
    assert remote.location(6) == local.location(6) == "train-00001-of-00002.parquet row 1"
    assert remote.fingerprint == local.fingerprint
    assert len(open_table(url, split="test")) == len(open_table(f"{url}/test-*.parquet", split="test")) == 1


def test_opening_reads_no_pictures(store, monkeypatch) -> None:
    import pyarrow.parquet as pq

    read: list[list[str]] = []
    whole = pq.ParquetFile.read

    def watched(self, columns=None, **options):
        read.append(columns)
        return whole(self, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read", watched)
    open_source(data_config(store[1]))
    assert read and all(not {"jpg_0", "jpg_1"} & set(columns) for columns in read)


def test_a_cache_is_built_from_it_and_later_starts_without_it(store, tmp_path, monkeypatch) -> None:
    folder, url = store
    latents = []
    for name, source in (("local", folder), ("remote", url)):
        config = data_config(source, cache_dir=str(tmp_path / name))
        build_cache(config, FakeBackbone())
        (reader,) = open_readers(config, FakeBackbone(), seed=0)
        latents.append(
            torch.stack([side.data for i in range(len(reader.source)) for side in reader.read(i, Geometry())])
        )
    assert torch.equal(*latents)
    monkeypatch.setattr(cache, "open_source", None)
    assert len(open_readers(config, FakeBackbone(), seed=0)[0].source) == 7
    monkeypatch.undo()
    fsspec.filesystem("memory").put(
        str(folder / "test-00000-of-00001.parquet"), "/bucket/pairs/train-00001-of-00002.parquet"
    )
    with pytest.raises(UserError, match="is stale"):
        open_readers(config, FakeBackbone(), seed=0)


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("memory://bucket/elsewhere", {}, "holds no parquet files"),
        ("memory://bucket/pairs", {"split": "dev"}, "holds no split 'dev'"),
        ("nosuch://bucket/pairs", {}, "cannot be read"),
        ("memory://bucket/pairs", {"format": "jsonl"}, "cannot be read as format 'jsonl'"),
    ],
)
def test_what_cannot_be_read_is_said(store, address, options, message) -> None:
    with pytest.raises(UserError, match=message):
        open_table(address, **options)
