"""Fingerprints: stable between loads, sensitive to what decides results, blind to the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tests.backbones.common import load, perturb
from tests.tiny import edit_json, make_sdxl


def test_stable_between_loads_and_blind_to_adapters(tiny_sdxl: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(tiny_sdxl, tmp_path / "copy"))
    one, two = load(tiny_sdxl), load(elsewhere, lora={"rank": 2, "use_dora": True})
    perturb(two)
    assert one.encoder_fingerprint() == two.encoder_fingerprint()
    assert one.denoiser_fingerprint() == two.denoiser_fingerprint()
    assert len(one.encoder_fingerprint()) == 32


def test_weights_configuration_and_precision_count(tiny_sdxl: Path, tmp_path: Path) -> None:
    base = load(tiny_sdxl)
    reseeded = load(make_sdxl(tmp_path / "seed", seed=1))
    assert base.encoder_fingerprint() != reseeded.encoder_fingerprint()
    assert base.denoiser_fingerprint() != reseeded.denoiser_fingerprint()
    rescaled = Path(shutil.copytree(tiny_sdxl, tmp_path / "scale"))
    edit_json(rescaled / "vae/config.json", scaling_factor=0.5)
    assert base.encoder_fingerprint() != load(rescaled).encoder_fingerprint()
    assert base.denoiser_fingerprint() == load(rescaled).denoiser_fingerprint()
    assert base.encoder_fingerprint() != load(tiny_sdxl, torch.bfloat16).encoder_fingerprint()


def test_full_training_keeps_the_fingerprint_of_the_base(tiny_sd: Path) -> None:
    backbone = load(tiny_sd, train="full")
    before = backbone.denoiser_fingerprint()
    perturb(backbone)
    assert backbone.denoiser_fingerprint() == before == load(tiny_sd).denoiser_fingerprint()
