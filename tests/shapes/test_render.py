"""Pictures: geometry, anti-aliasing, textures, flaws, and the files of `shapes render`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_align.shapes.render import contact_sheet, figure_mask, render, run, texture_mask
from t2i_align.shapes.world import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene

SCENE = Scene("square", "blue", "large", "plain", "in the centre", "cream")


def test_flat_areas_have_exactly_the_palette_colours() -> None:
    pixels = np.asarray(render(SCENE))
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert tuple(pixels[32, 32]) == COLOURS["blue"]
    assert tuple(pixels[0, 0]) == BACKGROUNDS["cream"]


@pytest.mark.parametrize("shape", SHAPES)
def test_figures_are_centred_and_as_large_as_told(shape: str) -> None:
    mask = figure_mask(shape, (30.0, 33.0), 16.0) > 0.02  # tips cover little of a pixel
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    assert max(width, height) / 2 == pytest.approx(16.0, abs=1.5)
    assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(30.0, abs=0.8)
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(33.0, abs=0.8)


def test_coverage_is_the_area() -> None:
    assert figure_mask("circle", (32, 32), 10.0).sum() == pytest.approx(np.pi * 100, rel=0.02)
    assert figure_mask("diamond", (32, 32), 10.0).sum() == pytest.approx(200, rel=0.03)
    ring, disc = figure_mask("ring", (32, 32), 10.0), figure_mask("circle", (32, 32), 10.0)
    assert ring.sum() / disc.sum() == pytest.approx(1 - 0.52**2, rel=0.03)


def test_contours_are_anti_aliased() -> None:
    mask = figure_mask("circle", (32.3, 31.6), 12.0)
    between = (mask > 0.05) & (mask < 0.95)
    assert 40 < between.sum() < 120  # about one pixel along a contour of 75
    assert len(np.unique(mask)) > 20


def test_all_shapes_and_textures_differ() -> None:
    masks = np.stack([figure_mask(shape, (32, 32), 16.0) for shape in SHAPES])
    overlap = [(np.minimum(a, b).sum() / np.maximum(a, b).sum()) for i, a in enumerate(masks) for b in masks[:i]]
    assert max(overlap) < 0.9
    tones = [texture_mask(texture, (32, 32)) for texture in TEXTURES]
    assert tones[0].max() == 0
    assert tones[1].mean() == pytest.approx(0.5, abs=0.05)
    assert tones[2].mean() == pytest.approx(np.pi * 2.2**2 / 49, abs=0.05)


def test_texture_moves_with_the_figure() -> None:
    near, far = texture_mask("striped", (20.0, 30.0)), texture_mask("striped", (25.0, 34.0))
    np.testing.assert_allclose(near[:-4, :-5], far[4:, 5:], atol=1e-4)


def test_flaws_do_what_they_say() -> None:
    sharp, soft = (np.asarray(render(replace(SCENE, softness=s)), dtype=float) for s in (0.0, 1.5))
    assert np.abs(np.diff(soft, axis=1)).max() < 0.6 * np.abs(np.diff(sharp, axis=1)).max()
    shaded = np.asarray(render(replace(SCENE, shading=0.4)), dtype=float)
    assert shaded[5, 60].sum() < 0.75 * shaded[5, 3].sum()
    assert tuple(shaded[32, 32]) == COLOURS["blue"]


def test_contact_sheet_layout() -> None:
    sheet = contact_sheet([Image.new("RGB", (64, 64), (255, 0, 0))] * 5, columns=3, zoom=1, gap=2)
    assert sheet.size == (3 * 66 + 2, 2 * 66 + 2)
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_run_writes_pictures_and_captions(tmp_path: Path) -> None:
    run(tmp_path / "out", count=5, seed=3)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(5)), "captions.txt", "contact_sheet.png"]
    assert len((tmp_path / "out" / "captions.txt").read_text().splitlines()) == 5
    again = run(tmp_path / "again", count=5, seed=3)
    assert (again / "00004.png").read_bytes() == (tmp_path / "out" / "00004.png").read_bytes()
