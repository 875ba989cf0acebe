#!/usr/bin/env bash
# Package:  pillow 13.0.0
# Input:    PNG files of one pixel with 16 bits per channel, each channel 25700 (0x6464), 39 % of the way from black to
#           white: grey, grey with alpha, and colour; each opened and converted to RGB.
# Expected: (100, 100, 100) from all three: they are one shade, as PNG defines a sample as a fraction of the largest
#           that its bit depth allows; and Pillow's list of modes describes I;16 as unsigned integers of 16 bits.
# Seen:     100 from grey with alpha and from colour, whose high bytes are taken; 255, white, from grey, whose values
#           above 255 are clipped. All but the darkest 0.4 % of a grey picture is white (2026-11-29, Linux, Python
#           3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet pillow==13.0.0

cd "$folder"
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

import PIL
from PIL import Image

ALPHA = 65535


def png(colour_type, samples):
    """A PNG file of one pixel with 16 bits per channel."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


print(f"pillow {PIL.__version__}")
KINDS = (("grey", 0, [25700]), ("grey, alpha", 4, [25700, ALPHA]), ("colour", 2, [25700] * 3))
for name, colour_type, samples in KINDS:
    image = Image.open(io.BytesIO(png(colour_type, samples)))
    print(f"{name}: opened as {image.mode}, in RGB {image.convert('RGB').getpixel((0, 0))}")
PYTHON
)
echo "$seen"
wanted="pillow 13.0.0
grey: opened as I;16, in RGB (255, 255, 255)
grey, alpha: opened as RGBA, in RGB (100, 100, 100)
colour: opened as RGB, in RGB (100, 100, 100)"
if [ "$seen" != "$wanted" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
