"""What a cache remembers of a run's pairs: the same pairs as opening the source gives, and never outdated ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2i_align.data import cache
from t2i_align.data.cache import CachedReader, build_cache, open_readers
from t2i_align.data.sources import open_source
from t2i_align.data.transform import Geometry
from t2i_align.errors import UserError

from .make import FakeBackbone, data_config, pickapic, png, write_jsonl, write_parquet

LABELS: list[float | None] = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0, 0.0]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Eight pairs with everything a pair can have; one is a tie, one cannot be decoded."""
    count = range(len(LABELS))
    columns = pickapic(
        LABELS,
        user_id=[f"user {i % 2}" for i in count],
        weight=[1.0 + i for i in count],
        score_0=[i / 10 for i in count],
        score_1=[0.3] * len(LABELS),
        margins=[{"clip": 0.1 * i} for i in count],
        caption_1=[None if i % 3 else f"other {i}" for i in count],
    )
    columns["jpg_1"][4] = b"rubbish"
    return write_parquet(tmp_path / "p.parquet", columns)


def options(pairs: Path, **more) -> dict:
    return {"cache_dir": str(pairs.parent / "cache"), "heldout_fraction": 0.3, **more}


def seen(reader: CachedReader) -> tuple:
    """Everything a run reads of its pairs."""
    source = reader.source
    described = [source.describe(index) for index in range(len(source))]
    latents = [side.data for index in range(len(source)) for side in reader.read(index, Geometry())]
    columns = (
        source.labels().tolist(),
        source.weights().tolist(),
        source.scores().tolist(),
        source.gaps("clip").tolist(),
    )
    texts = (source.pair_ids(), source.captions(), source.captions_1(), source.users())
    return (
        described,
        columns,
        texts,
        source.fingerprint,
        source.table.fingerprint,
        source.left_out,
        torch.stack(latents),
    )


def never(*args, **kwargs):
    raise AssertionError("the source was opened")


@pytest.mark.parametrize("more", [{}, {"ties": "coin"}, {"shuffle_labels": True}, {"loser_captions": "weak"}])
def test_the_second_start_opens_no_source_and_sees_the_same(pairs, monkeypatch, more) -> None:
    config, backbone = data_config(pairs, **options(pairs, **more)), FakeBackbone()
    build_cache(config, backbone)
    first = [seen(reader) for reader in open_readers(config, backbone, seed=3)]
    opened = [
        seen(CachedReader.of(cache.CacheStore(Path(config.cache_dir or "")), s)) for s in cache._sources(config, 3)
    ]
    monkeypatch.setattr(cache, "open_source", never)
    second = [seen(reader) for reader in open_readers(config, backbone, seed=3)]
    assert len(second) == 2
    for one, two, three in zip(first, second, opened, strict=True):
        assert one[:-1] == two[:-1] == three[:-1]
        assert torch.equal(one[-1], two[-1])
    if config.ties != "coin" and not config.shuffle_labels:  # what is cached does not depend on coins, but plans do
        assert build_cache(config, backbone).encoded_pairs == 0


def test_pictures_and_places_are_still_the_sources(pairs) -> None:
    config, backbone = data_config(pairs, **options(pairs)), FakeBackbone()
    build_cache(config, backbone)
    plain = open_source(config)
    opened, planned = (open_readers(config, backbone, seed=0)[0].source for _ in range(2))
    index = plain.pair_ids().index(planned.pair_ids()[-1])
    assert planned.images(len(planned) - 1) == plain.images(index)
    assert planned.location(len(planned) - 1) == plain.location(index)
    parts = {source.without([0], "shown").fingerprint for source in (opened, planned)}
    assert len(parts) == 1 and planned.fingerprint not in parts


def test_a_file_that_changed_is_opened_again(pairs) -> None:
    config, backbone = data_config(pairs, **options(pairs)), FakeBackbone()
    build_cache(config, backbone)
    open_readers(config, backbone, seed=0)
    flipped = [None if label is None else 1.0 - label for label in LABELS]
    write_parquet(pairs, pickapic(flipped))
    os.utime(pairs, (1, 1))
    with pytest.raises(UserError, match="is stale"):  # other columns, and all pictures can be decoded now
        open_readers(config, backbone, seed=0)


def test_other_settings_and_coins_are_other_plans(pairs) -> None:
    backbone = FakeBackbone()
    config = data_config(pairs, **options(pairs, ties="coin", shuffle_labels=True))
    build_cache(config, backbone)
    labels = {
        tuple(open_readers(config, backbone, seed=seed)[0].source.labels()) for seed in range(4) for _ in range(2)
    }
    assert len(labels) > 1
    fewer = data_config(pairs, **options(pairs, ties="coin", max_pairs=2))
    assert len(open_readers(fewer, backbone, seed=0)[0].source) == 2


def test_another_encoder_is_refused_by_the_plan_too(pairs) -> None:
    config = data_config(pairs, **options(pairs))
    build_cache(config, FakeBackbone())
    open_readers(config, FakeBackbone(), seed=0)
    for refused in (
        lambda: open_readers(config, FakeBackbone("encoder two"), seed=0),
        lambda: build_cache(config, FakeBackbone("encoder two")),
    ):
        with pytest.raises(UserError, match="VAE and text encoders"):
            refused()


def test_pictures_in_files_of_their_own_are_always_opened(tmp_path, monkeypatch) -> None:
    rows = [{"prompt": f"p {i}", "image_0": f"{i}a.png", "image_1": f"{i}b.png", "label_0": 1.0} for i in range(3)]
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    config, backbone = data_config(file, cache_dir=str(tmp_path / "cache")), FakeBackbone()
    build_cache(config, backbone)
    assert len(open_readers(config, backbone, seed=0)[0].source) == 3
    (tmp_path / "1a.png").write_bytes(png(77, 20, 20))
    with pytest.raises(UserError, match="is stale"):
        open_readers(config, backbone, seed=0)


def test_new_shards_make_older_plans_disappear(pairs) -> None:
    backbone, folder = FakeBackbone(), pairs.parent / "cache"
    few = data_config(pairs, **options(pairs, max_pairs=2, heldout_fraction=0.0))
    build_cache(few, backbone)
    open_readers(few, backbone, seed=0)
    assert len(list(folder.glob("pairs-*.arrow"))) == 1
    build_cache(data_config(pairs, **options(pairs, heldout_fraction=0.0)), backbone)
    assert not list(folder.glob("pairs-*.arrow"))
    assert len(list(folder.glob("index-*"))) == 1


def test_other_tensors_beside_the_shards_are_left_alone(pairs) -> None:
    """Features of users' pairs are kept in the same folder."""
    config, backbone, folder = data_config(pairs, **options(pairs)), FakeBackbone(), pairs.parent / "cache"
    build_cache(config, backbone)
    first = seen(open_readers(config, backbone, seed=0)[0])
    save_file({"captions": torch.zeros(2, 3)}, folder / "features-0.safetensors")
    for index in folder.glob("index-*"):
        shutil.rmtree(index)
    assert build_cache(config, backbone).encoded_pairs == 0
    assert seen(open_readers(config, backbone, seed=0)[0])[:-1] == first[:-1]
