"""Swapping the names of two pictures."""

import pytest

from t2i_align.data.record import PairRecord, swap

RECORDS = [
    PairRecord("a", "cat", b"0", b"1", 1.0, margins={"score": 2.0}),
    PairRecord("b", "cat", b"0", b"1", 0.25, caption_1="dog", user_id="u", weight=3.0),
    PairRecord("c", "cat", b"0", b"1", 0.5, margins={"score": -1.5}),
]


@pytest.mark.parametrize("record", RECORDS)
def test_swap_is_an_involution(record: PairRecord) -> None:
    assert swap(swap(record)) == record


def test_swap_reverses_the_label_and_the_pictures() -> None:
    swapped = swap(RECORDS[1])
    assert (swapped.image_0, swapped.image_1, swapped.label_0) == (b"1", b"0", 0.75)
    assert (swapped.caption, swapped.caption_1) == ("dog", "cat")
    assert (swapped.user_id, swapped.weight) == ("u", 3.0)


def test_margins_point_from_the_preferred_picture() -> None:
    assert swap(RECORDS[0]).margins == {"score": 2.0}  # the preferred picture is still the preferred one
    assert swap(RECORDS[2]).margins == {"score": 1.5}  # a tie's margin follows picture 0
