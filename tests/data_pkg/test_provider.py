"""Batches: orientation, dropout, geometry, order, and the same numbers from cache and live pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from t2i_align.data.cache import build_cache
from t2i_align.data.pictures import decode
from t2i_align.data.provider import PairProvider
from t2i_align.data.transform import Geometry, PairTransform
from t2i_align.errors import UserError

from .make import FakeBackbone, pickapic, png, run_config, write_parquet


def provider(source: Path, batch_size: int = 2, accumulation: int = 1, rank: int = 0, world_size: int = 1,
             backbone: FakeBackbone | None = None, **options: Any) -> PairProvider:  # fmt: skip
    return PairProvider(
        run_config(source, **options),
        backbone or FakeBackbone(),
        batch_size=batch_size,
        accumulation=accumulation,
        device="cpu",
        rank=rank,
        world_size=world_size,
    )


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """12 pairs of wide and square pictures, ties and a soft label among them, four prompts."""
    labels = [1.0, 0.0, 0.5, 0.75, 0.0, 0.2] * 2
    columns = pickapic(
        labels, caption=[f"prompt {i % 4}" for i in range(12)], user_id=[i % 3 for i in range(12)],
        margins=[{"score": i / 10} for i in range(12)],
    )  # fmt: skip
    columns["jpg_0"] = [png(i, 24, 16) for i in range(12)]
    columns["jpg_1"] = [png(100 + i, 16, 16) for i in range(12)]
    return write_parquet(tmp_path / "p.parquet", columns)


def same(first: Any, second: Any) -> bool:
    """Whether two batches hold the same numbers."""

    def tensors(batch: Any) -> list[torch.Tensor]:
        ids = [batch.time_ids_winner, batch.time_ids_loser]
        prompt = [batch.prompt.hidden, batch.prompt.pooled]
        return [batch.winner, batch.loser, *prompt, *ids, batch.preferred, batch.weights, *batch.margins.values()]

    equal = all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    return equal and (first.ids, first.epochs, first.users) == (second.ids, second.epochs, second.users)


def latents_of(data: bytes, geometry: Geometry = Geometry()) -> torch.Tensor:  # noqa: B008 - frozen
    pixels = PairTransform(16)(decode(data), geometry).pixels
    return FakeBackbone().encode_image(pixels[None])[0]


class TestOrientation:
    def test_the_preferred_picture_is_the_winner(self, pairs: Path) -> None:
        batch = provider(pairs, batch_size=10, ties="drop").batch(0, 0)
        by_id = dict(zip(batch.ids, range(10), strict=True))
        for row, (winner, loser), preferred in (
            (0, (png(0, 24, 16), png(100)), 1.0),
            (1, (png(101), png(1, 24, 16)), 1.0),
            (3, (png(3, 24, 16), png(103)), 0.75),
            (5, (png(105), png(5, 24, 16)), 0.8),
        ):
            at = by_id[str(row)]
            assert torch.equal(batch.winner[at], latents_of(winner))
            assert torch.equal(batch.loser[at], latents_of(loser))
            assert batch.preferred[at] == pytest.approx(preferred)
            assert batch.margins["score"][at] == pytest.approx(row / 10)
            assert batch.users[at] == str(row % 3)

    def test_time_ids_follow_the_pictures(self, pairs: Path) -> None:
        batch = provider(pairs, batch_size=10).batch(0, 0)
        at = batch.ids.index("1")  # picture 1, the square one, wins
        assert batch.time_ids_winner[at].tolist() == [16, 16, 0, 0, 16, 16]
        assert batch.time_ids_loser[at].tolist() == [16, 24, 0, 4, 16, 16]

    def test_ties_fall_either_way(self, tmp_path: Path) -> None:
        columns = pickapic([0.5] * 40, margins=[{"a": 1.0}] * 40)
        columns["jpg_0"], columns["jpg_1"] = [png(0)] * 40, [png(1)] * 40
        batch = provider(write_parquet(tmp_path / "t.parquet", columns), batch_size=40, ties="soft").batch(0, 0)
        zero_wins = torch.stack([torch.equal(w, latents_of(png(0))) * torch.ones(()) for w in batch.winner])
        assert 8 < zero_wins.sum() < 32 and (batch.preferred == 0.5).all()
        assert torch.equal(batch.margins["a"], zero_wins * 2 - 1)  # a tie's margin follows the picture

    def test_two_captions(self, tmp_path: Path) -> None:
        columns = pickapic([1.0, 0.0], caption_1=["other 0", None])
        batch = provider(write_parquet(tmp_path / "p.parquet", columns)).batch(0, 0)
        states = FakeBackbone._states
        first, second = batch.ids.index("0"), batch.ids.index("1")
        assert torch.equal(batch.prompt.hidden[first], states("prompt 0"))
        assert torch.equal(batch.prompt_loser.hidden[first], states("other 0"))
        assert torch.equal(batch.prompt.hidden[second], batch.prompt_loser.hidden[second])

    def test_one_caption_has_no_second_prompt(self, pairs: Path) -> None:
        assert provider(pairs).batch(0, 0).prompt_loser is None


class TestOrder:
    def test_resuming_is_arithmetic(self, pairs: Path) -> None:
        first, second = provider(pairs), provider(pairs)
        later = [second.batch(step, 0) for step in (7, 3)]
        assert all(same(first.batch(step, 0), batch) for step, batch in zip((7, 3), later, strict=True))

    def test_two_processes_equal_one_with_twice_the_batch(self, pairs: Path) -> None:
        options = {"ties": "soft", "random_flip": True, "proportion_empty_prompts": 0.5, "accumulation": 2}
        one = provider(pairs, batch_size=4, **options)
        two = [provider(pairs, batch_size=2, rank=rank, world_size=2, **options) for rank in (0, 1)]
        for step in range(3):
            for micro_step in range(2):
                whole = one.batch(step, micro_step)
                parts = [part.batch(step, micro_step) for part in two]
                assert whole.ids == parts[0].ids + parts[1].ids
                for name in ("winner", "loser", "preferred", "time_ids_winner"):
                    assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
                assert torch.equal(whole.prompt.hidden, torch.cat([part.prompt.hidden for part in parts]))

    def test_epochs(self, pairs: Path) -> None:
        training = provider(pairs, batch_size=4)  # 10 usable pairs
        assert [training.epoch_of(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]
        assert training.batch(2, 0).epochs == [0, 0, 1, 1]

    def test_worker_threads_change_nothing(self, pairs: Path) -> None:
        options = {"random_flip": True, "center_crop": False}
        calm, busy = provider(pairs, **options), provider(pairs, dataloader_num_workers=3, **options)
        for step in (0, 1, 2, 9, 4, 5):  # in order, and jumping
            assert same(calm.batch(step, 0), busy.batch(step, 0))
        busy.close()


class TestAugmentation:
    def test_flip_and_crop_are_shared_by_the_pair(self, tmp_path: Path) -> None:
        columns = pickapic([1.0] * 8)
        columns["jpg_0"] = columns["jpg_1"] = [png(i, 40, 16) for i in range(8)]
        training = provider(
            write_parquet(tmp_path / "p.parquet", columns), batch_size=8, random_flip=True, center_crop=False
        )
        batch = training.batch(0, 0)
        assert torch.equal(batch.winner, batch.loser)
        assert torch.equal(batch.time_ids_winner, batch.time_ids_loser)
        assert len(set(batch.time_ids_winner[:, 3].tolist())) > 1
        again = training.batch(1, 0)
        assert not torch.equal(batch.winner[batch.ids.index("3")], again.winner[again.ids.index("3")])

    def test_caption_dropout_is_one_draw_per_pair_and_epoch(self, tmp_path: Path) -> None:
        columns = pickapic([1.0] * 200, caption_1=["other"] * 200)
        columns["jpg_0"] = columns["jpg_1"] = [png(0)] * 200
        training = provider(
            write_parquet(tmp_path / "p.parquet", columns), batch_size=200, proportion_empty_prompts=0.25
        )
        first, second = training.batch(0, 0), training.batch(1, 0)
        empty = {name: (batch.prompt.hidden == 0).all(-1).all(-1) for name, batch in (("a", first), ("b", second))}
        assert 30 < empty["a"].sum() < 70
        assert (first.prompt.pooled[empty["a"]] == 0).all()
        # winner and loser share their fate, and the draw is the same whenever the batch is asked for
        assert torch.equal((first.prompt_loser.hidden == 0).all(-1).all(-1), empty["a"])
        assert same(first, training.batch(0, 0))
        dropped = [{i for i, e in zip(b.ids, empty[k], strict=True) if e} for k, b in (("a", first), ("b", second))]
        assert dropped[0] != dropped[1]


class TestCacheEqualsLive:
    @pytest.mark.parametrize("flip", [False, True])
    def test_every_batch(self, pairs: Path, tmp_path: Path, flip: bool) -> None:
        options = {"ties": "soft", "random_flip": flip, "proportion_empty_prompts": 0.3, "heldout_fraction": 0.25}
        cached_options = {**options, "cache_dir": str(tmp_path / "cache"), "dataloader_num_workers": 2}
        build_cache(run_config(pairs, **cached_options).data, FakeBackbone(), shard_pairs=5)
        backbone = FakeBackbone()
        live, cached = provider(pairs, **options), provider(pairs, backbone=backbone, **cached_options)
        for step in range(8):
            assert same(live.batch(step, 0), cached.batch(step, 0))
        for first, second in zip(live.heldout_batches(9, 2), cached.heldout_batches(9, 2), strict=True):
            assert same(first, second)
        assert backbone.images_encoded == 0 and backbone.prompts_encoded == []

    def test_labels_may_change_under_a_cache(self, pairs: Path, tmp_path: Path) -> None:
        cache = str(tmp_path / "cache")
        build_cache(run_config(pairs, cache_dir=cache, ties="soft").data, FakeBackbone())
        for options in ({"shuffle_labels": True}, {"ties": "coin"}, {"max_pairs": 3}):
            assert same(provider(pairs, **options).batch(0, 0), provider(pairs, cache_dir=cache, **options).batch(0, 0))


class TestHeldOut:
    def test_shares_and_limit(self, pairs: Path) -> None:
        options = {"ties": "soft", "heldout_fraction": 0.5}
        whole = [i for batch in provider(pairs, **options).heldout_batches(100, 4) for i in batch.ids]
        assert len(whole) == 6 == provider(pairs, **options).num_heldout and len(set(whole)) == 6
        parts = [provider(pairs, rank=rank, world_size=2, **options) for rank in (0, 1)]
        halves = [[i for batch in part.heldout_batches(3, 2) for i in batch.ids] for part in parts]
        assert sorted(halves[0] + halves[1]) == sorted(whole)
        assert [len(batch) for batch in parts[0].heldout_batches(3, 2)] == [2, 1]
        assert [len(batch) for batch in parts[0].heldout_batches(1, 2)] == [1]

    def test_nothing_is_random(self, pairs: Path) -> None:
        options = {"heldout_fraction": 0.5, "random_flip": True, "center_crop": False, "proportion_empty_prompts": 0.9}
        plain = provider(pairs, heldout_fraction=0.5)
        for seed in (1, 2):
            noisy = provider(pairs, seed=seed, **options)
            for first, second in zip(plain.heldout_batches(9, 3), noisy.heldout_batches(9, 3), strict=True):
                assert same(first, second)

    def test_none(self, pairs: Path) -> None:
        training = provider(pairs)
        assert training.num_heldout == 0 and list(training.heldout_batches(5, 2)) == []


class TestRefusals:
    def test_undecodable_picture_before_the_first_step(self, tmp_path: Path) -> None:
        columns = pickapic([1.0] * 4)
        columns["jpg_1"][2] = png(0)[:40]
        with pytest.raises(UserError, match="1 of the pairs .* cannot be decoded") as error:
            provider(write_parquet(tmp_path / "p.parquet", columns))
        assert "p.parquet row 2: picture 1" in error.value.found

    def test_resolution(self, pairs: Path) -> None:
        with pytest.raises(UserError, match="data.resolution does not fit") as error:
            provider(pairs, resolution=20)
        assert "16 or 24" in error.value.fix

    def test_cache_that_is_not_there(self, pairs: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no cache") as error:
            provider(pairs, cache_dir=str(tmp_path / "none"))
        assert "t2i-align data cache" in error.value.fix
