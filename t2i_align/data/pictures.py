"""From encoded bytes to an upright RGB picture: the reward models' decoder, so that scorers see what training sees."""

from __future__ import annotations

from PIL import Image

from reward_models.errors import RewardModelError
from reward_models.images import decode_rgb


class UndecodableImage(Exception):
    """A picture that cannot be used; the message is the reason. Whoever knows the row adds it."""


def decode(data: bytes) -> Image.Image:
    """Decode to upright RGB by the rules of `reward_models.rgb`.

    Raises:
        UndecodableImage: not a picture, truncated, too many pixels, or numbers without a known white.
    """
    try:
        return decode_rgb(data)
    except RewardModelError as error:
        raise UndecodableImage(f"{error.what}: {error.found}" if error.found else error.what) from error
