"""What people write into the cells of a pair table: who won, whether anybody decided, and captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from t2i_align.data.layout import Layout
from t2i_align.errors import UserError
from t2i_align.text_tables import spelling

Where = Callable[[int], str]  # row -> where a person finds it
FIRST = frozenset(("a", "first", "left"))
SECOND = frozenset(("b", "second", "right"))
TIES = frozenset(
    ("tie", "ties", "draw", "both", "neither", "equal", "same", "none", "either", "bothgood", "bothbad", "0.5")
)
PREFIXES = ("image", "img", "picture", "jpg", "model", "option", "side", "candidate")
TRUE, FALSE = frozenset(("true", "t", "yes", "y", "1")), frozenset(("false", "f", "no", "n", "0"))
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
SHOWN = 3


def captions(values: Sequence[Any], where: Where, address: str) -> list[str | None]:
    """Captions as they are; None where there is none.

    Raises:
        UserError: one that is no text, with its row and type.
    """
    wrong = [row for row, value in enumerate(values) if value is not None and not isinstance(value, str)]
    if wrong:
        row = wrong[0]
        raise UserError(
            f"Captions of {address} must be text; {len(wrong)} of {len(values)} are not.",
            f"{where(row)}: {type(values[row]).__name__} {str(values[row])[:60]}",
            "store one text per pair; of several captions keep one, or make a row for each",
        )
    return list(values)


def decided(values: Sequence[Any], where: Where, address: str) -> tuple[np.ndarray, dict[str, int]]:
    """``[N]`` bool, whether somebody decided each pair, and why the others are left out (reason -> number).

    True and false may be booleans, 1 and 0, or words; an empty cell is no decision.

    Raises:
        UserError: another value, with its row.
    """
    words = [_word(value) for value in values]
    wrong = [row for row, word in enumerate(words) if word not in TRUE | FALSE | {""}]
    if wrong:
        raise UserError(
            f"has_label of {address} is neither true nor false in {len(wrong)} of {len(values)} rows.",
            "; ".join(f"{where(row)}: {values[row]!r}" for row in wrong[:SHOWN]),
            "write true or false, 1 or 0",
        )
    counts = {
        "has_label is false": sum(word in FALSE for word in words),
        "has_label is empty": sum(word == "" for word in words),
    }
    mask = np.array([word in TRUE for word in words], dtype=bool)
    return mask, {reason: count for reason, count in counts.items() if count}


def winner_labels(
    values: Sequence[Any], pictures: Sequence[tuple[Any, Any]] | None, layout: Layout, where: Where, address: str
) -> np.ndarray:
    """``[N]`` probability that picture 0 is preferred, 1, 0 or 0.5, from what a column says who won.

    A side may be called by its ending (``a``, ``2``, ``left``), its column, a letter, first and second, or the name of
    the picture itself; numbers count from where the columns do, or else from the smallest one seen where that is clear.

    Args:
        values: N cells.
        pictures: N times both picture cells, where they are names; None where they hold pictures.
        layout: of the table.
        where: for messages.
        address: for messages.

    Raises:
        UserError: every row whose value names neither picture, with the values seen; or numbers that may count from 0
            or 1.
    """
    column = " or ".join(layout.fields["winner"])
    words = [_word(value) for value in values]
    sides = _numbered_sides(layout, words, address, column)
    labels = np.full(len(words), np.nan)
    for row, word in enumerate(words):
        labels[row] = _label(word, ("", "") if pictures is None else _names(pictures[row], values[row]), sides, layout)
    wrong = np.flatnonzero(np.isnan(labels)).tolist()
    if wrong:
        seen = Counter(repr(value) for value in values).most_common(8)
        rows = "; ".join(f"{where(row)}: {values[row]!r}" for row in wrong[:SHOWN])
        raise UserError(
            f"{len(wrong)} of {len(values)} rows of {address} have a {column} that names neither picture.",
            f"{rows}; values seen: {', '.join(f'{value} ({count})' for value, count in seen)}",
            f"write {layout.sides[0]}, {layout.sides[1]} or tie, or name the column that says it: data.columns.winner, "
            "or data.columns.label_0 for a probability",
        )
    return labels


def _label(word: str, names: tuple[str, str], sides: tuple[frozenset[str], frozenset[str]], layout: Layout) -> float:
    """The label that a word stands for; NaN where it is none."""
    if word and names[0] != names[1] and word in names:
        return 1.0 if word == names[0] else 0.0
    if word in TIES or word.startswith("tie"):
        return 0.5
    own = tuple(map(spelling, layout.pictures))
    if word in own:
        return 1.0 if word == own[0] else 0.0
    short = next((word.removeprefix(prefix) for prefix in PREFIXES if word.startswith(prefix)), word)
    first, second = short in sides[0], short in sides[1]
    return 1.0 if first and not second else 0.0 if second and not first else float("nan")


def _names(pictures: tuple[Any, Any], value: Any) -> tuple[str, str]:
    """Both pictures' names as a cell may give them: whole, or without their folders."""
    whole = _word(pictures[0]), _word(pictures[1])
    if _word(value) in whole:
        return whole
    first, second = (_word(PurePath(str(name)).name) for name in pictures)
    return first, second


def _numbered_sides(
    layout: Layout, words: Sequence[str], address: str, column: str
) -> tuple[frozenset[str], frozenset[str]]:
    """All words for either side; numbers count from 0 or 1 as the columns do, or as the values show.

    Raises:
        UserError: the columns have no numbers, and the values may count from either.
    """
    first, second = layout.sides
    numbers = {word for word in words if word in ("0", "1", "2")}
    if first.isdigit() or not numbers:
        return FIRST | {first}, SECOND | {second}
    if numbers == {"1"} or numbers >= {"0", "2"}:
        raise UserError(
            f"The numbers in {column} of {address} may count from 0 or from 1.",
            f"values {', '.join(sorted(numbers))}; pictures {', '.join(layout.pictures)}",
            f"write {first} and {second}, or call the pictures image_0 and image_1, or image_1 and image_2",
        )
    counted = ("0", "1") if "0" in numbers else ("1", "2")
    return FIRST | {first, counted[0]}, SECOND | {second, counted[1]}


def _word(value: Any) -> str:
    """A cell as one spelling; whole floats lose their ``.0``, missing values are empty."""
    if value is None or value != value:
        return ""
    text = str(value).strip()
    if NUMBER.fullmatch(text):  # a spelling has no sign and no point
        return str(int(float(text))) if float(text).is_integer() else text
    return spelling(text)
