"""What one judgement is, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PairRecord:
    """Two pictures for one caption and which of them is preferred.

    Attributes:
        pair_id: stable and unique in its source; the address of the pair's random draws.
        caption: prompt of both pictures, or of picture 0 where ``caption_1`` is set.
        image_0, image_1: encoded pictures (PNG, JPEG, ... bytes).
        label_0: probability in [0, 1] that picture 0 is preferred; 0.5 is a tie.
        caption_1: caption of picture 1 where it differs (double-caption data).
        user_id: who judged.
        weight: non-negative weight of the pair's loss.
        margins: reward name -> score(preferred) - score(other); of a tie, score(picture 0) - score(picture
            1).
        scores: one reward of picture 0 and of picture 1.
    """

    pair_id: str
    caption: str
    image_0: bytes
    image_1: bytes
    label_0: float
    caption_1: str | None = None
    user_id: str | None = None
    weight: float = 1.0
    margins: dict[str, float] | None = None
    scores: tuple[float, float] | None = None

    @property
    def is_tie(self) -> bool:
        """Whether no side is preferred."""
        return self.label_0 == 0.5


@dataclass(frozen=True)
class RankedRecord:
    """Several pictures for one caption, in order of preference.

    Attributes:
        list_id: stable and unique in its source.
        caption: prompt of all pictures.
        images: k >= 2 encoded pictures.
        ranks: k numbers, smaller is better; equal ranks are ties.
        user_id: who judged.
        weight: non-negative weight of the list's loss.
    """

    list_id: str
    caption: str
    images: tuple[bytes, ...]
    ranks: tuple[float, ...]
    user_id: str | None = None
    weight: float = 1.0


def swap(record: PairRecord) -> PairRecord:
    """The same judgement with the pictures named the other way round; ``swap(swap(r)) == r``.

    Margins point from the preferred picture to the other and so stay, except in a tie, where they follow
    picture 0.
    """
    has_two_captions = record.caption_1 is not None
    margins = record.margins
    if record.is_tie and margins is not None:
        margins = {name: -value for name, value in margins.items()}
    return replace(
        record,
        caption=record.caption_1 if record.caption_1 is not None else record.caption,
        caption_1=record.caption if has_two_captions else None,
        image_0=record.image_1,
        image_1=record.image_0,
        label_0=1.0 - record.label_0,
        margins=margins,
        scores=None if record.scores is None else (record.scores[1], record.scores[0]),
    )
