"""Building, resuming, refusing and reading a cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from t2i_align.data.cache import build_cache, ensure_cache, open_cache
from t2i_align.data.cache_index import KeyIndex
from t2i_align.data.cache_store import CacheStore, key_of
from t2i_align.data.sources import open_source
from t2i_align.data.transform import Geometry
from t2i_align.errors import UserError

from .make import FakeBackbone, data_config, pickapic, png, run_config, write_jsonl, write_parquet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six pairs, two prompts."""
    captions = [f"prompt {i % 2}" for i in range(6)]
    return write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0] * 3, caption=captions))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache goes."""
    return tmp_path / "cache"


def read_all(config, backbone: FakeBackbone) -> torch.Tensor:
    """``[2 N, C, h, w]`` all latents in the source's order."""
    (reader,) = open_cache(config, backbone, [open_source(config)])
    sides = [side for index in range(len(reader.source)) for side in reader.read(index, Geometry())]
    return torch.stack([side.data for side in sides])


class TestBuilding:
    def test_pictures_and_prompts_are_encoded_once(self, tmp_path: Path, folder: Path) -> None:
        lists = [{"prompt": "a", "images": ["0.png", "1.png", "2.png", "3.png"], "ranks": [1, 2, 3, 4]}]
        config = data_config(write_jsonl(tmp_path / "r.jsonl", lists), cache_dir=str(folder))
        backbone = FakeBackbone()
        report = build_cache(config, backbone)
        assert (report.pairs, report.pictures, report.prompts, report.encoded_pairs) == (6, 4, 1, 6)
        assert backbone.images_encoded == 4 and backbone.prompts_encoded == ["a"]
        assert report.bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    @pytest.mark.parametrize("workers", [0, 3])
    def test_a_second_build_has_nothing_to_do(self, pairs: Path, folder: Path, workers: int) -> None:
        config = data_config(pairs, cache_dir=str(folder), dataloader_num_workers=workers)
        first, second = FakeBackbone(), FakeBackbone()
        build_cache(config, first, shard_pairs=4)
        files = sorted(folder.iterdir())
        assert build_cache(config, second, shard_pairs=4).encoded_pairs == 0
        assert (first.images_encoded, second.images_encoded, second.prompts_encoded) == (12, 0, [])
        assert sorted(folder.iterdir()) == files

    def test_more_pairs_are_added(self, pairs: Path, folder: Path) -> None:
        build_cache(data_config(pairs, cache_dir=str(folder), max_pairs=2), FakeBackbone())
        report = build_cache(data_config(pairs, cache_dir=str(folder)), FakeBackbone())
        assert (report.pairs, report.encoded_pairs) == (6, 4)

    def test_several_builders_share_the_work(self, pairs: Path, folder: Path) -> None:
        config, backbones = data_config(pairs, cache_dir=str(folder)), [FakeBackbone(), FakeBackbone(), FakeBackbone()]
        for rank, backbone in enumerate(backbones):
            build_cache(config, backbone, rank=rank, world_size=3)
        assert sum(backbone.images_encoded for backbone in backbones) == 12
        assert sorted(p for backbone in backbones for p in backbone.prompts_encoded) == ["prompt 0", "prompt 1"]
        assert len(read_all(config, FakeBackbone())) == 12

    def test_held_out_pairs_are_cached_too(self, pairs: Path, folder: Path) -> None:
        config = data_config(pairs, cache_dir=str(folder), heldout_fraction=0.5)
        assert build_cache(config, FakeBackbone()).pairs == 6

    def test_without_pooled_prompts(self, pairs: Path, folder: Path) -> None:
        config, backbone = data_config(pairs, cache_dir=str(folder)), FakeBackbone(pooled=False)
        build_cache(config, backbone)
        (reader,) = open_cache(config, backbone, [open_source(config)])
        prompts = reader.prompts(["prompt 1", "prompt 0", "prompt 1"])
        assert prompts.pooled is None
        assert torch.equal(prompts.hidden, backbone.encode_prompt(["prompt 1", "prompt 0", "prompt 1"]).hidden)

    def test_tensors_keep_the_encoders_dtype(self, pairs: Path, folder: Path) -> None:
        class Half(FakeBackbone):
            def encode_prompt(self, prompts: list[str]):
                return super().encode_prompt(prompts).to(dtype=torch.bfloat16)

        config = data_config(pairs, cache_dir=str(folder))
        build_cache(config, Half())
        (reader,) = open_cache(config, Half(), [open_source(config)])
        assert reader.prompts(["prompt 0"]).hidden.dtype == torch.bfloat16
        assert read_all(config, Half()).dtype == torch.float32

    def test_progress(self, pairs: Path, folder: Path) -> None:
        calls: list[tuple] = []
        build_cache(data_config(pairs, cache_dir=str(folder)), FakeBackbone(), progress=lambda *a: calls.append(a))
        assert calls[0] == ("prompts", 2, 2) and calls[-1] == ("pairs", 6, 6)


class TestUndecodablePictures:
    def test_are_left_out_and_reported(self, tmp_path: Path, folder: Path) -> None:
        columns = pickapic([1.0] * 4)
        columns["jpg_1"][1] = b"rubbish"
        config = data_config(write_parquet(tmp_path / "p.parquet", columns), cache_dir=str(folder))
        report = build_cache(config, FakeBackbone(), shard_pairs=2)
        assert report.pairs == 3 and len(report.rejected) == 1
        assert report.rejected[0].startswith("p.parquet row 1: the image cannot be decoded: not a picture")
        assert "1 pair left out" in report.render()
        (reader,) = open_cache(config, FakeBackbone(), [open_source(config)])
        assert reader.source.pair_ids() == ["0", "2", "3"]
        assert reader.source.left_out == {"picture that cannot be decoded": 1}
        assert torch.equal(read_all(config, FakeBackbone())[2], FakeBackbone().encode_image(pixels(png(4))))
        again = FakeBackbone()
        assert build_cache(config, again).encoded_pairs == again.images_encoded == 0

    def test_all_of_them(self, tmp_path: Path, folder: Path) -> None:
        columns = pickapic([1.0, 1.0], jpg_0=[b"rubbish", b"rubble"])
        config = data_config(write_parquet(tmp_path / "p.parquet", columns), cache_dir=str(folder))
        build_cache(config, FakeBackbone())
        with pytest.raises(UserError, match="No pair of .* can be decoded"):
            open_cache(config, FakeBackbone(), [open_source(config)])


class TestStaleCaches:
    @pytest.mark.parametrize(
        ("options", "fingerprint", "named"),
        [
            ({}, "encoder two", "VAE and text encoders: cache encoder one, run encoder two"),
            ({"resolution": 24}, "encoder one", "data.resolution: cache 16, run 24"),
            ({"random_flip": True}, "encoder one", "data.random_flip"),
        ],
    )
    def test_name_what_changed(self, pairs: Path, folder: Path, options: dict, fingerprint: str, named: str) -> None:
        build_cache(data_config(pairs, cache_dir=str(folder)), FakeBackbone())
        config, backbone = data_config(pairs, cache_dir=str(folder), **options), FakeBackbone(fingerprint)
        for attempt in (
            lambda: build_cache(config, backbone),
            lambda: open_cache(config, backbone, [open_source(config)]),
        ):
            with pytest.raises(UserError, match="is stale") as error:
                attempt()
            assert named in error.value.found
            assert f"delete {folder} and run t2i-align data cache" in error.value.fix
        assert backbone.images_encoded == 0

    def test_other_pictures_at_the_same_address(self, pairs: Path, folder: Path) -> None:
        config = data_config(pairs, cache_dir=str(folder))
        build_cache(config, FakeBackbone())
        write_parquet(pairs, pickapic([1.0] * 6, jpg_0=[png(50 + i, 17) for i in range(6)]))
        with pytest.raises(UserError, match="is stale") as error:
            build_cache(config, FakeBackbone())
        assert f"captions or ids of {pairs} are not those" in error.value.found

    def test_a_cache_with_flips_serves_runs_without(self, pairs: Path, folder: Path) -> None:
        build_cache(data_config(pairs, cache_dir=str(folder), random_flip=True), FakeBackbone())
        plain = data_config(pairs, cache_dir=str(folder))
        assert build_cache(plain, FakeBackbone()).encoded_pairs == 0
        assert len(read_all(plain, FakeBackbone())) == 12

    def test_incomplete(self, pairs: Path, folder: Path) -> None:
        build_cache(data_config(pairs, cache_dir=str(folder), max_pairs=2), FakeBackbone())
        config = data_config(pairs, cache_dir=str(folder))
        with pytest.raises(UserError, match="incomplete") as error:
            open_cache(config, FakeBackbone(), [open_source(config)])
        assert error.value.found == "4 of 6 pairs are missing"

    def test_a_deleted_shard_is_encoded_again(self, pairs: Path, folder: Path) -> None:
        config = data_config(pairs, cache_dir=str(folder))
        build_cache(config, FakeBackbone(), shard_pairs=2)
        whole = read_all(config, FakeBackbone())
        next(folder.glob("pictures-*")).unlink()
        report = build_cache(config, FakeBackbone())
        assert report.encoded_pairs == 2 and torch.equal(read_all(config, FakeBackbone()), whole)

    def test_a_damaged_shard_is_named(self, pairs: Path, folder: Path) -> None:
        config = data_config(pairs, cache_dir=str(folder))
        build_cache(config, FakeBackbone())
        shard = next(folder.glob("pictures-*"))
        shard.write_bytes(shard.read_bytes()[:100])
        with pytest.raises(UserError, match=f"{shard.name} is not a readable shard"):
            build_cache(config, FakeBackbone())

    def test_random_crops_are_refused(self, pairs: Path, folder: Path) -> None:
        with pytest.raises(UserError, match="cannot hold random crops"):
            build_cache(data_config(pairs, cache_dir=str(folder), center_crop=False), FakeBackbone())

    def test_a_folder_with_other_things_is_refused(self, pairs: Path) -> None:
        with pytest.raises(UserError, match="is not a cache"):
            build_cache(data_config(pairs, cache_dir=str(pairs.parent)), FakeBackbone())

    def test_no_folder_is_set(self, pairs: Path) -> None:
        with pytest.raises(UserError, match="cache_dir is not set"):
            build_cache(data_config(pairs), FakeBackbone())
        assert ensure_cache(run_config(pairs), FakeBackbone()) is None


BUILDER = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.data_pkg.make import FakeBackbone, data_config
from t2i_align.data.cache import build_cache

class Doomed(FakeBackbone):
    def encode_image(self, pixels):
        if self.images_encoded > 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_image(pixels)

build_cache(data_config({source!r}, cache_dir={folder!r}, random_flip=True), Doomed(), shard_pairs=4)
"""


def test_a_killed_build_resumes(tmp_path: Path, folder: Path) -> None:
    source = write_parquet(tmp_path / "p.parquet", pickapic([1.0] * 40))
    script = BUILDER.format(root=str(ROOT), source=str(source), folder=str(folder))
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=280)
    assert process.returncode == -signal.SIGKILL, process.stderr
    config, backbone = data_config(source, cache_dir=str(folder), random_flip=True), FakeBackbone()
    done = len(CacheStore(folder).pairs)
    assert done == 16  # 64 pictures of 4 to a pair were encoded, 4 pairs to a shard
    with pytest.raises(UserError, match="incomplete"):
        open_cache(config, backbone, [open_source(config)])
    report = build_cache(config, backbone)
    assert (report.pairs, report.encoded_pairs) == (40, 24)
    assert backbone.images_encoded == 4 * 24  # two pictures, each also mirrored
    fresh = data_config(source, cache_dir=str(tmp_path / "fresh"), random_flip=True)
    build_cache(fresh, FakeBackbone())
    assert torch.equal(read_all(config, backbone), read_all(fresh, backbone))


def test_only_old_temporary_files_are_removed(pairs: Path, folder: Path) -> None:
    config = data_config(pairs, cache_dir=str(folder))
    build_cache(config, FakeBackbone())
    abandoned, busy = folder / "pictures-a.safetensors.1.tmp", folder / "pictures-b.safetensors.2.tmp"
    for file in (abandoned, busy):
        file.write_bytes(b"half a shard")
    os.utime(abandoned, (0, 0))
    assert build_cache(config, FakeBackbone()).encoded_pairs == 0
    assert not abandoned.exists() and busy.exists()


class TestStore:
    def test_key_index(self) -> None:
        index = KeyIndex.of([np.array([5, -3]), np.array([], dtype=np.int64), np.array([9])])
        assert [index.find(key) for key in (5, -3, 9)] == [(0, 0), (0, 1), (2, 0)]
        assert index.has(np.array([9, 4])).tolist() == [True, False]
        assert index.has(np.array([[-3, 99], [-9, 5]])).tolist() == [[True, False], [False, True]]
        assert KeyIndex.of([]).has(np.array([1])).tolist() == [False]
        with pytest.raises(KeyError):
            index.find(4)

    def test_keys_are_unambiguous(self) -> None:
        assert key_of("ab", "c") != key_of("a", "bc")
        assert -(2**63) <= key_of("x") < 2**63

    def test_reading_leaves_the_file_on_disk(self, tmp_path: Path, folder: Path) -> None:
        """A row of a shard costs a row of memory, not the shard."""
        count = 64
        columns = pickapic([1.0] * count)
        config = data_config(write_parquet(tmp_path / "p.parquet", columns), cache_dir=str(folder))
        build_cache(config, FakeBackbone())
        store = CacheStore(folder)
        latents, *_ = store.picture(int(store.pictures.keys[0]), flip=False)
        assert latents.untyped_storage().nbytes() == latents.numel() * 4


def test_run_loads_the_model_without_its_denoiser(pairs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i_align.backbones import loading
    from t2i_align.data import cache

    asked: list[SimpleNamespace] = []

    def load(config: object, device: object, dtype: object, **options: object) -> FakeBackbone:
        asked.append(SimpleNamespace(dtype=dtype, options=options))
        backbone = FakeBackbone()
        backbone.unet = None
        return backbone

    monkeypatch.setattr(loading, "load_backbone", load)
    assert cache.run(run_config(pairs, cache_dir=str(folder))).pairs == 6
    assert asked == [SimpleNamespace(dtype=torch.float32, options={"encoders_only": True})]


def pixels(data: bytes) -> torch.Tensor:
    """A picture of the right size as the encoder sees it."""
    from t2i_align.data.pictures import decode

    array = torch.from_numpy(np.array(decode(data), dtype=np.float32)).permute(2, 0, 1)
    return (array / 127.5 - 1)[None][0]
