"""Drawing scenes: anti-aliased 64-pixel RGB pictures, and contact sheets to look at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .world import BACKGROUNDS, COLOURS, IMAGE_SIZE, RGB, Scene, caption, sample_scene

SUPERSAMPLING = 8
TEXTURE_PERIOD = 7.0  # pixels between stripes, and between rows of dots
DOT_RADIUS = 2.2
TONE_MIX = 0.45  # how far the second tone of a texture lies from the first towards black or white


def _regular(points: int, start: float) -> np.ndarray:
    angles = start + 2 * np.pi * np.arange(points) / points
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    outline = _regular(10, -np.pi / 2)
    outline[1::2] *= 0.45
    return outline


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _cross(arm: float = 0.36) -> np.ndarray:
    quarter = np.array([[arm, -arm], [1.0, -arm], [1.0, arm], [arm, arm]])
    turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
    return np.concatenate([quarter[:3] @ turn for turn in turns])


def _fit(outline: np.ndarray) -> np.ndarray:
    """Centre the bounding box on 0 and scale its longer side to 2, so that position and size mean one thing."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    return (outline - (low + high) / 2) / ((high - low).max() / 2)


OUTLINES: dict[str, np.ndarray] = {
    "circle": _regular(96, 0.0),
    "square": _fit(_regular(4, np.pi / 4)) * 0.92,
    "triangle": _fit(_regular(3, -np.pi / 2)),
    "diamond": _regular(4, 0.0),
    "star": _fit(_star()),
    "heart": _fit(_heart()),
    "cross": _cross(),
    "ring": _regular(96, 0.0),
}
RING_HOLE = 0.52  # inner radius over outer radius


def figure_mask(shape: str, centre: tuple[float, float], radius: float, size: int = IMAGE_SIZE) -> np.ndarray:
    """Coverage of each pixel by the figure: float32 `[size, size]` in [0, 1]."""
    scale = SUPERSAMPLING
    canvas = Image.new("L", (size * scale, size * scale), 0)
    draw = ImageDraw.Draw(canvas)

    def polygon(factor: float, fill: int) -> None:
        points = (OUTLINES[shape] * radius * factor + np.array(centre)) * scale - 0.5
        draw.polygon([(x, y) for x, y in points], fill=fill)

    polygon(1.0, 255)
    if shape == "ring":
        polygon(RING_HOLE, 0)
    return np.asarray(canvas.reduce(scale), dtype=np.float32) / 255.0


def texture_mask(texture: str, centre: tuple[float, float], size: int = IMAGE_SIZE) -> np.ndarray:
    """Share of the second tone in each pixel: float32 `[size, size]` in [0, 1]; its phase is fixed to the figure."""
    grid = np.arange(size, dtype=np.float32) + 0.5
    x, y = grid[None, :] - centre[0], grid[:, None] - centre[1]
    period = TEXTURE_PERIOD
    if texture == "plain":
        return np.zeros((size, size), dtype=np.float32)
    if texture == "striped":
        phase = ((x + y) / math.sqrt(2)) % period
        return np.clip(0.5 + period / 4 - np.abs(phase - period / 2), 0.0, 1.0)
    distance = np.hypot((x + period / 2) % period - period / 2, (y + period / 2) % period - period / 2)
    return np.clip(DOT_RADIUS + 0.5 - distance, 0.0, 1.0)


def second_tone(colour: RGB, background: RGB) -> np.ndarray:
    """The texture's other colour, float32 `[3]` in [0, 255]: darker on a light ground, lighter on a dark one."""
    target = 0.0 if sum(background) > 3 * 128 else 255.0
    return np.asarray(colour, dtype=np.float32) * (1 - TONE_MIX) + target * TONE_MIX


def _ground(scene: Scene, size: int) -> np.ndarray:
    ground = np.broadcast_to(np.asarray(BACKGROUNDS[scene.background], np.float32), (size, size, 3))
    if scene.shading == 0:
        return ground
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    direction = math.cos(scene.shading_angle) * grid[None, :] + math.sin(scene.shading_angle) * grid[:, None]
    light = 1 - scene.shading * np.clip(direction / math.sqrt(2) + 0.5, 0, 1)
    return ground * light[..., None]


def render(scene: Scene) -> Image.Image:
    """Draw `scene` as an RGB picture of 64 x 64 pixels."""
    mask = figure_mask(scene.shape, scene.centre, scene.radius)[..., None]
    tone = texture_mask(scene.texture, scene.centre)[..., None]
    colour = np.asarray(COLOURS[scene.colour], dtype=np.float32)
    other = second_tone(COLOURS[scene.colour], BACKGROUNDS[scene.background])
    figure = colour * (1 - tone) + other * tone
    pixels = _ground(scene, IMAGE_SIZE) * (1 - mask) + figure * mask
    image = Image.fromarray(np.round(np.clip(pixels, 0, 255)).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(scene.softness)) if scene.softness else image


def contact_sheet(images: Sequence[Image.Image], columns: int = 8, zoom: int = 2, gap: int = 4) -> Image.Image:
    """Lay `images` out in rows of `columns`, each enlarged `zoom` times."""
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    width, height = images[0].width * zoom, images[0].height * zoom
    rows = math.ceil(len(images) / columns)
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (120, 120, 120))
    for i, image in enumerate(images):
        enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        row, column = divmod(i, columns)
        sheet.paste(enlarged, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def run(output_dir: str | Path, count: int = 64, seed: int = 0) -> Path:
    """Write `count` random scenes as PNG files with `captions.txt` and `contact_sheet.png`; returns the folder."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    images = [render(scene) for scene in scenes]
    for i, image in enumerate(images):
        image.save(folder / f"{i:05d}.png")
    lines = (f"{i:05d}.png\t{caption(scene)}\n" for i, scene in enumerate(scenes))
    (folder / "captions.txt").write_text("".join(lines), encoding="utf-8")
    contact_sheet(images).save(folder / "contact_sheet.png")
    return folder
