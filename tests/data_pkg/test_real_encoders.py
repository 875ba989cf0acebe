"""Cache and live pictures with real (tiny, random) encoders: the same batches up to the order of sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2i_align.data.cache import run
from t2i_align.data.provider import PairProvider
from t2i_align.errors import UserError

from .make import pickapic, png, run_config, write_parquet


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six pairs of pictures of several sizes."""
    columns = pickapic([1.0, 0.0, 0.5] * 2)
    columns["jpg_0"] = [png(i, 80, 64) for i in range(6)]
    columns["jpg_1"] = [png(9 + i, 64, 96) for i in range(6)]
    return write_parquet(tmp_path / "p.parquet", columns)


@pytest.mark.parametrize("model", ["tiny_sdxl", "tiny_sd_v"])
def test_cache_equals_live(pairs: Path, tmp_path: Path, model: str, request: pytest.FixtureRequest) -> None:
    from t2i_align.backbones import load_backbone

    config = run_config(pairs, ties="soft", resolution=64, random_flip=True, proportion_empty_prompts=0.4)
    config.model.pretrained_model_name_or_path = str(request.getfixturevalue(model))
    backbone = load_backbone(config.model, "cpu", torch.float32)
    cached_config = config.model_copy(deep=True)
    cached_config.data.cache_dir = str(tmp_path / "cache")
    assert run(cached_config).pairs == 6
    live, cached = (
        PairProvider(each, backbone, batch_size=3, accumulation=1, device="cpu") for each in (config, cached_config)
    )
    for step in range(4):
        first, second = live.batch(step, 0), cached.batch(step, 0)
        assert first.ids == second.ids
        torch.testing.assert_close(first.winner, second.winner, atol=1e-6, rtol=0)
        torch.testing.assert_close(first.loser, second.loser, atol=1e-6, rtol=0)
        torch.testing.assert_close(first.prompt.hidden, second.prompt.hidden, atol=1e-5, rtol=0)
        assert (first.prompt.pooled is None) == (second.prompt.pooled is None) == (model == "tiny_sd_v")
        if model == "tiny_sdxl":
            assert torch.equal(first.time_ids_winner, second.time_ids_winner)
            assert torch.equal(first.time_ids_loser, second.time_ids_loser)


def test_another_model_makes_the_cache_stale(pairs: Path, tmp_path: Path, tiny_sdxl: Path, tiny_sd: Path) -> None:
    config = run_config(pairs, resolution=64, cache_dir=str(tmp_path / "cache"))
    config.model.pretrained_model_name_or_path = str(tiny_sdxl)
    run(config)
    config.model.pretrained_model_name_or_path = str(tiny_sd)
    with pytest.raises(UserError, match="is stale") as error:
        run(config)
    assert "VAE and text encoders" in error.value.found
