"""Every kind of picture to its hand-computed pixels, and the same ones for training and for scorers."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models import RewardModelError, load
from reward_models.images import FORMATS, decode_image, decode_rgb
from reward_models.preprocess import Preprocessor
from tests.reward_models.golden import GOLDEN, TOKENIZER, noise_image

WHITE = (255, 255, 255)
OPTIONS = {"checkpoint": GOLDEN / "pickscore", "tokenizer": TOKENIZER, "device": "cpu"}


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, depth, colour, row, *chunks):
    """A PNG of one row, written by hand: what Pillow itself cannot write."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


def palette_and_alpha():
    image = Image.new("P", (1, 1))
    image.putpalette([100, 0, 255])
    image.putalpha(128)
    return image


PALETTE = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 200, 0, 0]))
GREY, COLOUR, INDEX, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
# 128 of 255 opaque over white: (v * 128 + 255 * 127) / 255, rounded: 100 -> 177.2, 0 -> 127, 255 -> 255.
CASES = {
    "16-bit grey": (png(3, 16, GREY, words(25700, 0x00FF, 65535)), [(100,) * 3, (0,) * 3, WHITE]),
    "16-bit grey, transparent colour": (
        png(2, 16, GREY, words(25700, 25701), chunk(b"tRNS", words(25701))),
        [(100,) * 3, WHITE],
    ),
    "16-bit grey and alpha": (
        png(3, 16, GREY_ALPHA, words(25700, 65535, 25700, 0x8000, 25700, 0)),
        [(100,) * 3, (177,) * 3, WHITE],
    ),
    "16-bit colour": (png(2, 16, COLOUR, words(25700, 0x01FF, 0x8000, 65535, 0, 1)), [(100, 1, 128), (255, 0, 0)]),
    "16-bit colour, transparent colour": (
        png(2, 16, COLOUR, words(25700, 0x01FF, 0x8000, 65535, 0, 1), chunk(b"tRNS", words(25700, 0x01FF, 0x8000))),
        [WHITE, (255, 0, 0)],
    ),
    "16-bit colour and alpha": (png(1, 16, COLOUR_ALPHA, words(25700, 0, 65535, 0x8000)), [(177, 127, 255)]),
    "4-bit grey, transparent colour": (png(2, 4, GREY, b"\x53", chunk(b"tRNS", words(5))), [WHITE, (51,) * 3]),
    "2-bit grey, transparent colour": (png(2, 2, GREY, b"\x60", chunk(b"tRNS", words(2))), [(85,) * 3, WHITE]),
    "1-bit grey, transparent colour": (png(2, 1, GREY, b"\x40", chunk(b"tRNS", words(0))), [WHITE, WHITE]),
    "8-bit grey, transparent colour": (
        png(2, 8, GREY, bytes([16, 32]), chunk(b"tRNS", words(32))),
        [(16,) * 3, WHITE],
    ),
    "colour, transparent colour": (
        png(2, 8, COLOUR, bytes([1, 2, 3, 1, 2, 4]), chunk(b"tRNS", words(1, 2, 3))),
        [WHITE, (1, 2, 4)],
    ),
    "palette": (png(2, 8, INDEX, bytes([0, 2]), PALETTE), [(10, 20, 30), (200, 0, 0)]),
    "palette, transparent index": (
        png(3, 8, INDEX, bytes([0, 1, 2]), PALETTE, chunk(b"tRNS", b"\xff\0")),
        [(10, 20, 30), WHITE, (200, 0, 0)],
    ),
    "palette, alpha of every colour": (
        png(3, 8, INDEX, bytes([0, 1, 2]), PALETTE, chunk(b"tRNS", b"\0\xff\x80")),
        [WHITE, (40, 50, 60), (227, 127, 127)],  # (200 * 128 + 255 * 127) / 255 = 227.4
    ),
    "grey and alpha": (png(2, 8, GREY_ALPHA, bytes([100, 128, 100, 255])), [(177,) * 3, (100,) * 3]),
    "colour and alpha": (png(1, 8, COLOUR_ALPHA, bytes([100, 0, 255, 128])), [(177, 127, 255)]),
    "1 bit": (png(2, 1, GREY, b"\x40"), [(0, 0, 0), WHITE]),
    "16-bit grey TIFF": (encoded(Image.new("I;16", (1, 1), 25700), "TIFF"), [(100,) * 3]),
    "16-bit grey TIFF, big end first": (encoded(Image.new("I;16B", (1, 1), 25700), "TIFF"), [(100,) * 3]),
    "16-bit grey PGM": (b"P5 2 1 65535\n" + words(25700, 65535), [(100,) * 3, WHITE]),
    "10-bit grey PGM": (b"P5 2 1 1023\n" + words(512, 1023), [(128,) * 3, WHITE]),
    "float TIFF": (
        encoded(Image.fromarray(np.array([[0.0, 0.5, 0.25, 1.0]], dtype=np.float32)), "TIFF"),
        [(0,) * 3, (128,) * 3, (64,) * 3, WHITE],  # 127.5 and 63.75, rounded
    ),
    "CMYK TIFF": (
        encoded(Image.new("CMYK", (1, 1), (0, 100, 200, 50)), "TIFF"),
        [(205, 125, 44)],  # 205 (255 - 100) / 255 = 124.6, 205 * 55 / 255 = 44.2
    ),
}
IN_MEMORY = {
    "RGBa": (Image.new("RGBa", (1, 1), (50, 0, 128, 128)), (177, 127, 255)),  # 50 over 0.502 is 100
    "La": (Image.new("La", (1, 1), (50, 128)), (177,) * 3),
    "PA": (palette_and_alpha(), (177, 127, 255)),
    "RGBX": (Image.new("RGBX", (1, 1), (1, 2, 3, 4)), (1, 2, 3)),
    "HSV": (Image.new("HSV", (1, 1), (0, 255, 200)), (200, 0, 0)),
    "YCbCr": (Image.new("YCbCr", (1, 1), (100, 128, 128)), (100,) * 3),
    "I;16B": (Image.new("I;16B", (1, 1), 25700), (100,) * 3),
    "I": (Image.new("I", (1, 1), 25700), (100,) * 3),
    "F": (Image.new("F", (1, 1), 0.5), (128,) * 3),
}


@pytest.mark.parametrize("kind", CASES)
def test_pixels_by_hand(kind):
    data, expected = CASES[kind]
    image = decode_rgb(data)
    assert image.mode == "RGB" and [image.getpixel((x, 0)) for x in range(image.width)] == expected
    assert decode_image(Image.open(io.BytesIO(data))).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_pixels_of_pictures_in_memory(mode):
    image, expected = IN_MEMORY[mode]
    assert image.mode == mode and decode_image(image).getpixel((0, 0)) == expected


def test_arrays():
    assert decode_image(np.array([[[100, 0, 255, 128]]], dtype=np.uint8)).getpixel((0, 0)) == (177, 127, 255)
    assert decode_image(np.array([[7]], dtype=np.uint8)).getpixel((0, 0)) == (7, 7, 7)


def test_cmyk_jpeg_of_adobe_is_not_inverted():
    data = encoded(Image.new("CMYK", (8, 8), (0, 100, 200, 50)), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data  # the marker that says: stored inverted
    assert np.abs(np.subtract(decode_rgb(data).getpixel((4, 4)), (205, 125, 44))).max() <= 1


@pytest.mark.parametrize(("lightness", "grey"), [(0, 0), (128, 119), (255, 255)])  # L* = 50.2 is 119.4 in sRGB
def test_lab_tiff(lightness, grey):
    data = encoded(Image.new("LAB", (1, 1), (lightness, 128, 128)), "TIFF")
    assert np.abs(np.subtract(decode_rgb(data).getpixel((0, 0)), grey)).max() <= 1


@pytest.mark.parametrize("kind", ["AVIF", "WEBP"])
def test_newer_formats_keep_their_alpha(kind):
    image = Image.new("RGBA", (16, 16), (100, 0, 255, 0))
    image.paste((200, 0, 0, 255), (8, 0, 16, 16))
    shown = decode_rgb(encoded(image, kind, quality=100, **({"lossless": True} if kind == "WEBP" else {})))
    assert shown.getpixel((2, 8)) == WHITE
    assert np.abs(np.subtract(shown.getpixel((13, 8)), (200, 0, 0))).max() <= 6


# What the tag says of the picture A B / C D, read row by row, for each of its values.
UPRIGHT = {1: "ABCD", 2: "BADC", 3: "DCBA", 4: "CDAB", 5: "ACBD", 6: "CADB", 7: "DBCA", 8: "BDAC"}


@pytest.mark.parametrize("value", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation(kind, value):
    greys = dict(zip("ABCD", (0, 80, 160, 240), strict=True))
    image = Image.new("L", (32, 16))
    for name, corner in zip("ABCD", [(0, 0), (16, 0), (0, 8), (16, 8)], strict=True):
        image.paste(greys[name], (*corner, corner[0] + 16, corner[1] + 8))
    exif = Image.Exif()
    exif[0x0112] = value
    shown = decode_rgb(encoded(image.convert("RGB"), kind, exif=exif))
    assert shown.size == ((32, 16) if value < 5 else (16, 32))
    thumb = np.asarray(shown.convert("L").resize((2, 2), Image.Resampling.BOX)).ravel()
    found = "".join(min("ABCD", key=lambda name: abs(greys[name] - int(grey))) for grey in thumb)
    assert found == UPRIGHT[value]
    assert decode_image(shown) is shown  # nothing is left that could turn it again


def test_a_broken_exif_block_says_nothing():
    whole = encoded(noise_image(0, 16, 8), "JPEG", exif=b"Exif\0\0rubbish that is no TIFF header")
    assert decode_rgb(whole).size == (16, 8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode_rgb(data).getpixel((4, 4)) == (200, 0, 0)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (Image.fromarray(np.array([[0.0, 2.5]], dtype=np.float32)), "values from 0 to 2.5"),
        (Image.fromarray(np.array([[-0.1, 0.5]], dtype=np.float32)), "values from -0.1 to 0.5"),
        (Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32)), "NaN"),
        (Image.fromarray(np.array([[0.5, np.inf]], dtype=np.float32)), "inf"),
        (Image.fromarray(np.array([[0, 200]], dtype=np.int32)), "values from 0 to 200"),  # of 255, of 65535 or of 2^32?
    ],
)
def test_numbers_without_a_known_white_are_refused(image, found):
    with pytest.raises(RewardModelError, match=found):
        decode_rgb(encoded(image, "TIFF"))


def test_32_bit_integers_in_memory_are_16_bit_values_or_refused():
    with pytest.raises(RewardModelError, match="values from 0 to 65536"):
        decode_rgb(Image.fromarray(np.array([[0, 65536]], dtype=np.int32)))


@pytest.mark.parametrize("kind", ["EPS", "PDF", "TGA", "ICO", "PCX"])
def test_only_named_formats_are_opened(kind):
    with pytest.raises(RewardModelError, match="cannot be decoded") as error:
        decode_rgb(encoded(noise_image(0, 32, 32), kind))
    assert ", ".join(FORMATS) in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_refused_or_whole(kind):
    """Wherever it is cut: an error, or every pixel (only what follows the pixels is missing); never half a picture."""
    data = encoded(noise_image(0, 40, 30), kind)
    whole, refused = decode_rgb(data).tobytes(), 0
    for kept in np.linspace(1, len(data) - 1, 60).astype(int):
        try:
            assert decode_rgb(data[:kept]).tobytes() == whole, f"{kept} of {len(data)} bytes"
        except RewardModelError:
            refused += 1
    assert refused > 50


def odd_pictures():
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = noise_image(1, 40, 30).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((40, 30)))
    ramp = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    return {
        "rotated": encoded(noise_image(0, 40, 30), "JPEG", exif=exif),
        "transparent": encoded(clear),
        "16-bit": encoded(ramp),
        "palette": encoded(noise_image(2, 40, 30).convert("P"), transparency=3),
    }


@pytest.mark.parametrize("kind", odd_pictures())
def test_a_scorer_sees_the_picture_and_by_name_what_was_published(kind):
    """The pipeline of the decoded picture, however it is handed over; `published` is the file in its own mode."""
    data = odd_pictures()[kind]
    plain, own = Image.fromarray(np.asarray(decode_rgb(data))), Image.open(io.BytesIO(data))
    for name in ("clip_pil", "openai", "hpsv2_rgb_first"):
        shown, published = Preprocessor(name, 64), Preprocessor(name, 64, "published")
        assert torch.equal(shown(data), shown(plain)) and torch.equal(shown(data), shown(own))
        assert not torch.equal(published(data), shown(data)) or kind == "palette"
        rgb = own if name == "openai" else own.convert("RGB")
        assert torch.equal(published(data), published(rgb))
    scorer = load("pickscore", **OPTIONS)
    for source in (data, own):
        assert torch.equal(scorer.score("a fox", [source]), scorer.score("a fox", [plain]))


def test_the_published_decoding_is_an_option_of_load():
    shown = load("pickscore", **OPTIONS)
    published = load("pickscore", **OPTIONS, decoding="published")
    assert published.version == f"{shown.version}+decoding=published"
    assert (shown.preprocessing, published.preprocessing) == ("clip_pil+shown@64", "clip_pil@64")
    odd, ordinary = odd_pictures()["transparent"], encoded(noise_image(0))
    assert shown.score("a fox", [odd]) != published.score("a fox", [odd])
    assert shown.score("a fox", [ordinary]) == published.score("a fox", [ordinary])
    with pytest.raises(RewardModelError, match="did you mean 'published'"):
        load("pickscore", **OPTIONS, decoding="publishd")
