"""Decoding and geometry."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_align.data.pictures import UndecodableImage, decode
from t2i_align.data.transform import Geometry, PairTransform, check_resolution, resolution_multiple
from t2i_align.errors import UserError

from .make import FakeBackbone, encoded, picture, png


class TestDecoding:
    def test_rgb_is_untouched(self) -> None:
        assert np.array_equal(np.asarray(decode(png(3, 5, 7))), np.asarray(picture(3, 5, 7)))

    def test_transparency_becomes_white(self) -> None:
        image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
        image.putpixel((1, 0), (10, 20, 30, 0))
        assert [decode(encoded(image)).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]

    def test_transparent_palette_colour_becomes_white(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.putpixel((1, 0), 1)
        decoded = decode(encoded(image, transparency=0))
        assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]

    @pytest.mark.parametrize("mode", ["L", "1", "CMYK", "LA"])
    def test_other_modes_become_rgb(self, mode: str) -> None:
        format = "TIFF" if mode == "CMYK" else "PNG"
        assert decode(encoded(Image.new(mode, (4, 4)), format)).mode == "RGB"

    def test_sixteen_bit_grey_is_scaled_not_clipped(self) -> None:
        image = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
        assert decode(encoded(image)).getpixel((0, 0)) == (128, 128, 128)

    def test_exif_orientation_is_applied(self) -> None:
        image, exif = Image.new("RGB", (6, 4)), Image.Exif()
        exif[0x0112] = 6  # rotate by 90 degrees to show
        assert decode(encoded(image, "JPEG", exif=exif)).size == (4, 6)

    @pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
    def test_rubbish(self, data: bytes) -> None:
        with pytest.raises(UndecodableImage):
            decode(data)

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
    def test_truncated(self, format: str) -> None:
        data = encoded(picture(0, 64, 64), format)
        with pytest.raises(UndecodableImage):
            decode(data[: len(data) // 2])

    @pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on broken EXIF
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "PPM"])
    def test_any_damage_is_reported_in_one_way(self, format: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        whole = encoded(picture(0, 24, 20), format, **({} if format in ("GIF", "BMP", "PPM") else {"exif": exif}))
        draws = np.random.default_rng(0)
        for _ in range(100):
            data = bytearray(whole)
            for at in draws.integers(0, min(len(data), 200), 5):
                data[at] = draws.integers(256)
            try:
                assert decode(bytes(data)).mode == "RGB"
            except UndecodableImage as error:
                assert str(error)

    @pytest.mark.parametrize(("width", "height"), [(8192, 8193), (20_000, 20_000)])
    def test_declared_size_of_a_bomb_is_enough(self, width: int, height: int) -> None:
        header = struct.pack(">4sII5B", b"IHDR", width, height, 8, 2, 0, 0, 0)
        data = png(0)
        assert data[12:16] == b"IHDR"
        with pytest.raises(UndecodableImage, match="bomb"):
            decode(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


class TestGeometry:
    def test_picture_of_the_right_size_keeps_its_pixels(self) -> None:
        image = picture(1, 8, 8)
        result = PairTransform(8)(image, Geometry())
        expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1
        assert torch.allclose(result.pixels, expected, atol=1e-6)
        assert (result.original_size, result.crop_top_left) == ((8, 8), (0, 0))
        assert result.pixels.dtype == torch.float32 and result.pixels.min() >= -1 and result.pixels.max() <= 1

    @pytest.mark.parametrize(
        ("size", "crop"),
        [((32, 16), (0, 4)), ((16, 32), (4, 0)), ((20, 10), (0, 4)), ((8, 16), (4, 0)), ((33, 16), (0, 4))],
    )
    def test_short_side_is_scaled_and_the_centre_cropped(self, size: tuple[int, int], crop: tuple[int, int]) -> None:
        result = PairTransform(8)(picture(0, *size), Geometry())
        assert result.pixels.shape == (3, 8, 8)
        assert result.original_size == (size[1], size[0])
        assert result.crop_top_left == crop

    def test_same_pixels_as_scaling_the_whole_picture(self) -> None:
        image = picture(2, 48, 24)
        scaled = np.asarray(image.resize((16, 8), Image.Resampling.LANCZOS), dtype=np.float32)
        result = PairTransform(8)(image, Geometry()).pixels
        expected = torch.from_numpy(scaled[:, 4:12]).permute(2, 0, 1) / 127.5 - 1
        assert (result - expected).abs().max() < 0.02  # within rounding of 8 bit pixels

    def test_proportions_stay(self) -> None:
        image = Image.new("RGB", (64, 32))
        image.paste((255, 255, 255), (24, 8, 40, 24))  # a square in the middle
        bright = PairTransform(16)(image, Geometry()).pixels[0] > 0
        assert bright.any(0).sum() == bright.any(1).sum() == 8

    def test_shrinking_does_not_alias(self) -> None:
        stripes = np.zeros((64, 64, 3), dtype=np.uint8)
        stripes[:, ::2] = 255
        pixels = PairTransform(8)(Image.fromarray(stripes), Geometry()).pixels
        assert pixels[:, :, 1:-1].abs().max() < 0.1  # grey, not black or white

    def test_flip_mirrors(self) -> None:
        image = picture(3, 12, 12)
        transform = PairTransform(12)
        plain, flipped = (transform(image, Geometry(flip=flip)).pixels for flip in (False, True))
        assert torch.equal(plain.flip(-1), flipped)

    def test_crop_positions_reach_both_ends(self) -> None:
        transform = PairTransform(8, center_crop=False)
        lefts = [transform(picture(0, 16, 8), Geometry(right=u)).crop_top_left[1] for u in (0.0, 0.3, 0.999)]
        assert lefts == [0, 2, 8]

    def test_extreme_aspect_ratio_is_cheap(self) -> None:
        result = PairTransform(512)(Image.new("RGB", (20_000, 2)), Geometry())  # scaled whole: 5 million px wide
        assert result.crop_top_left == (0, (20_000 * 512 // 2 - 512) // 2)

    def test_draws_are_per_pair_and_epoch(self) -> None:
        transform = PairTransform(8, center_crop=False, random_flip=True, seed=1)
        geometry = transform.geometry("a", 0)
        assert geometry == PairTransform(8, False, True, seed=1).geometry("a", 0)
        others = [
            transform.geometry("a", 1),
            transform.geometry("b", 0),
            PairTransform(8, False, True, 2).geometry("a", 0),
        ]
        assert len({geometry, *others}) == 4
        flips = [transform.geometry(str(i), 0).flip for i in range(400)]
        assert 150 < sum(flips) < 250

    def test_without_options_nothing_is_drawn(self) -> None:
        assert PairTransform(8).geometry("a", 3) == Geometry(False, 0.5, 0.5)


class TestResolution:
    def test_multiple(self) -> None:
        assert resolution_multiple(8, 3) == 32  # SDXL
        assert resolution_multiple(8, 4) == 64  # SD1.5

    @pytest.mark.parametrize(("resolution", "fix"), [(20, "16 or 24"), (4, "8"), (1001, "1000 or 1008")])
    def test_nearest_sizes_are_named(self, resolution: int, fix: str) -> None:
        with pytest.raises(UserError) as error:
            check_resolution(resolution, FakeBackbone())  # 4 times 2 levels: multiples of 8
        assert error.value.fix == f"set data.resolution to {fix}"

    def test_fitting(self) -> None:
        check_resolution(24, FakeBackbone())
