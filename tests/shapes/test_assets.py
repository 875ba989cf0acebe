"""The packaged world: addresses, and that the shipped model and pairs are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from t2i_align.errors import UserError
from t2i_align.shapes import assets
from t2i_align.shapes.oracle import Oracle
from t2i_align.shapes.pairs import SCHEMA
from t2i_align.shapes.render import render
from t2i_align.shapes.sampling import load_pipeline, sample
from t2i_align.shapes.world import parse_caption, sample_scene


def test_addresses() -> None:
    assert assets.resolve("shapes:base") == assets.base_model_path()
    assert assets.resolve("shapes:pairs") == assets.pairs_path("train")
    assert assets.resolve("shapes:pairs/heldout") == assets.pairs_path("heldout")


@pytest.mark.parametrize("address", ["shapes:bass", "shapes:", "shapes:pairs/test"])
def test_unknown_addresses(address: str) -> None:
    with pytest.raises(UserError, match="no such part"):
        assets.resolve(address)


def test_unknown_split() -> None:
    with pytest.raises(UserError, match="no such split"):
        assets.prompts("validation")


def test_missing_data_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assets, "DATA", tmp_path)
    with pytest.raises(UserError, match="packaged data"):
        assets.prompts("train")
    with pytest.raises(UserError, match="shapes pairs"):
        assets.pairs_path("heldout")


def test_the_world_is_small() -> None:
    total = sum(path.stat().st_size for path in assets.DATA.rglob("*") if path.is_file())
    assert total < 15 * 2**20


def test_packaged_pairs() -> None:
    captions = {}
    for split, at_least in (("train", 800), ("heldout", 200)):
        table = pq.read_table(assets.pairs_path(split))
        assert table.schema.equals(SCHEMA) and table.num_rows >= at_least
        labels = np.array(table["label_0"])
        assert set(labels) == {0.0, 0.5, 1.0}
        assert 0.04 < (labels == 0.5).mean() < 0.16
        assert 0.4 < labels.mean() < 0.6  # no side is favoured
        captions[split] = set(table["caption"].to_pylist())
        assert captions[split] <= set(assets.prompts(split))
        assert len(set(table["user_id"].to_pylist())) > 10
    assert not captions["train"] & captions["heldout"]
    assert not set(assets.prompts("train")) & set(assets.prompts("heldout"))


def test_the_base_model_paints_what_it_is_asked_with_room_to_improve() -> None:
    prompts = assets.prompts("heldout")[:24]
    images = sample(load_pipeline(assets.base_model_path()), prompts, seeds=range(24))
    scenes = [sample_scene(np.random.default_rng(i), **parse_caption(p)) for i, p in enumerate(prompts)]
    ideal = Oracle().score(prompts, [render(scene) for scene in scenes])["overall"].mean()
    ratio = Oracle().score(prompts, images)["overall"].mean() / ideal
    assert 0.72 < ratio < 0.95
