"""Contact sheets: pictures in a grid, with captions under them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PADDING = 8
BACKGROUND = (255, 255, 255)
INK = (40, 40, 48)
OUTLINE = (216, 217, 220)
SMALLEST_CELL = 160  # narrower pictures are enlarged by a whole factor, so that captions fit under them


def grid(
    images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None, font_size: int = 13
) -> Image.Image:
    """Lay pictures out row by row.

    Small pictures are enlarged by a whole factor without smoothing; others are fitted into the largest
    picture's cell.

    Args:
        images: at least one.
        columns: pictures per row.
        captions: one per picture, wrapped to the cell's width.
        font_size: of the captions, in pixels.

    Raises:
        ValueError: no picture, no column, or another number of captions.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs a picture and a column, got {len(images)} and {columns}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(captions)} captions")
    factor = max(1, -(-SMALLEST_CELL // max(image.width for image in images)))
    width = factor * max(image.width for image in images)
    height = factor * max(image.height for image in images)
    font = ImageFont.load_default(font_size)
    texts = [wrap(caption, font, width) for caption in captions or [""] * len(images)]
    line = font_size + 4
    starts = range(0, len(images), columns)
    text_heights = [max(line * len(text.splitlines()) for text in texts[s : s + columns]) for s in starts]
    sheet_width = PADDING + min(columns, len(images)) * (width + PADDING)
    sheet_height = PADDING + sum(height + PADDING + text for text in text_heights)
    sheet = Image.new("RGB", (sheet_width, sheet_height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(index, columns)
        left = PADDING + column * (width + PADDING)
        top = PADDING + row * (height + PADDING) + sum(text_heights[:row])
        picture = _fit(image, width, height)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=OUTLINE)
        draw.multiline_text((left, top + height + 3), text, INK, font, spacing=3)
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, max_lines: int = 4) -> str:
    """Break text into lines no wider than ``width`` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + " …"]
    return "\n".join(lines)


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    whole = float(scale).is_integer()
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
