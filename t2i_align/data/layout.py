"""Which of a table's columns is what: by the names people give them, or as ``data.columns`` says.

A pair table has a caption, two pictures and who won. The pictures are two columns of one name with a pair of endings
(``image_0, image_1``; ``jpg_a, jpg_b``; ``left_image, right_image``), and ``label_0`` or ``winner`` says who won; or
the endings say it themselves (``chosen, rejected``). Names are compared as `text_tables.spelling` does. Where more than
one reading is possible, none is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from t2i_align.errors import UserError
from t2i_align.text_tables import PROMPT_COLUMNS, find_column, spelling

FIELDS: dict[str, tuple[str, ...]] = {
    "caption": ("caption", *(name for name in PROMPT_COLUMNS if name != "caption")),
    "id": ("ranking_id", "id", "pair_id"),
    "user_id": ("user_id", "user", "annotator_id", "annotator", "rater_id", "rater", "worker_id"),
    "winner": ("preferred", "winner", "preference", "choice", "best"),
    "label_0": ("label_0",),
    "label_1": ("label_1",),
    "has_label": ("has_label",),
    "caption_1": ("caption_1", "prompt_1"),
    "weight": ("weight",),
    "margins": ("margins",),
    "score_0": ("score_0",),
    "score_1": ("score_1",),
}
"""Our field -> names it is recognised by; of several columns the first counts, and in JSON lines the first that a line
has."""

UIDS = ("image_0_uid", "image_1_uid")  # Pick-a-Pic's: for the ids of pairs without a ranking_id

STEMS = (
    *("jpg", "image", "img", "picture", "png", "jpeg", "photo", "pic"),
    *("image_path", "image_file", "img_path", "file_name", "file", "path"),
)
OPEN_SIDES = (("0", "1"), ("1", "2"), ("a", "b"), ("left", "right"), ("first", "second"))
DECIDED_SIDES = (
    *(("chosen", "rejected"), ("winner", "loser"), ("win", "lose"), ("w", "l"), ("better", "worse")),
    *(("preferred", "rejected"), ("preferred", "dispreferred"), ("positive", "negative")),
)
BARE_SIDES = tuple(sides for sides in DECIDED_SIDES if sides != ("w", "l"))  # these need no image or jpg before them
HOW = (
    "call the columns caption, image_0, image_1 and winner (or label_0), or caption, chosen and rejected; or name "
    "yours: data.columns.caption=..., image_0, image_1, winner, chosen, rejected"
)


@dataclass(frozen=True)
class Layout:
    """Columns of a pair table by what they hold.

    Attributes:
        pictures: columns of picture 0 and 1.
        sides: what values of the winner call them, such as ``("a", "b")``.
        decided: picture 0 is always the preferred one.
        fields: our field -> columns, the first that a row has counts.
        unread: columns that nothing reads.
    """

    pictures: tuple[str, str]
    sides: tuple[str, str]
    decided: bool
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def cheap(self) -> dict[str, str]:
        """Our field -> column, for tables that have every column in every row."""
        return {name: columns[0] for name, columns in self.fields.items()}

    def described(self) -> str:
        """What is read as what, in one line."""
        first, second = self.pictures
        pictures = f"preferred picture: {first}; other: {second}" if self.decided else f"pictures: {first}, {second}"
        told = {"caption": "caption", "winner": "winner", "label_0": "label", "user_id": "user", "id": "id"}
        parts = [f"{word}: {' or '.join(self.fields[name])}" for name, word in told.items() if name in self.fields]
        others = [name for name in self.fields if name not in told]
        also = f"; also {', '.join(others)}" if others else ""
        return "; ".join([*parts[:1], pictures, *parts[1:]]) + also

    def described_unread(self) -> str:
        """Columns that nothing reads, shortened."""
        shown = ", ".join(self.unread[:8])
        return f"{shown} and {len(self.unread) - 8} more" if len(self.unread) > 8 else shown


def recognise(columns: Sequence[str], chosen: Mapping[str, str], address: str) -> Layout:
    """The layout of a table.

    Args:
        columns: names in the table.
        chosen: our field -> column, as ``data.columns`` says; wins over recognition.
        address: for messages.

    Raises:
        UserError: no caption, pictures or winner is found, a chosen column is not there, or names can be read in more
            than one way.
    """
    named = {ours: _named(ours, theirs, columns, address) for ours, theirs in chosen.items()}
    pictures, sides, decided = _pictures(columns, named, address)
    taken = {*pictures, *named.values()}
    fields: dict[str, tuple[str, ...]] = {}
    for ours, names in FIELDS.items():
        if ours in named:
            fields[ours] = (named[ours],)
        elif found := _columns_called(names, [column for column in columns if column not in taken]):
            fields[ours] = found
    for ours, other in (("winner", "label_0"), ("label_0", "winner")):
        if ours in named and other not in named:
            fields.pop(other, None)
    if "caption" not in fields:
        raise _not_pairs(address, "no column of captions is", columns)
    if decided and (wrong := [name for name in ("label_0", "winner") if name in fields]):
        raise UserError(
            f"{address} says twice who won.",
            f"columns {', '.join(pictures)} and {', '.join(fields[wrong[0]])}",
            f"name the pictures data.columns.image_0 and image_1 to go by {fields[wrong[0]][0]}, or remove that column",
        )
    if not decided and not {"label_0", "winner"} & set(fields):
        raise _not_pairs(address, "no column that says who won is", columns)
    read = {*pictures, *UIDS, *(column for found in fields.values() for column in found)}
    return Layout(pictures, sides, decided, fields, tuple(name for name in columns if name not in read))


def is_pair_table(columns: Sequence[str], chosen: Mapping[str, str] | None = None) -> bool:
    """Whether columns are recognised as those of pairs."""
    try:
        recognise(columns, chosen or {}, "")
    except UserError:
        return False
    return True


def _named(ours: str, theirs: str, columns: Sequence[str], address: str) -> str:
    found = find_column(columns, [theirs]) if theirs not in columns else theirs
    if found is None:
        raise UserError(
            f"{address} has no column {theirs!r}, which data.columns.{ours} names.",
            f"columns {', '.join(columns) or 'none'}",
            "name one of them",
        )
    return found


def _columns_called(names: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    found = (find_column(columns, [name]) for name in names)
    return tuple(column for column in found if column is not None)


def _pictures(
    columns: Sequence[str], named: Mapping[str, str], address: str
) -> tuple[tuple[str, str], tuple[str, str], bool]:
    """Columns of both pictures, what their sides are called, and whether the first always won."""
    for first, second in (("image_0", "image_1"), ("chosen", "rejected")):
        given = [name for name in (first, second) if name in named]
        if len(given) == 1:
            raise UserError(
                f"data.columns.{given[0]} names one picture of two.",
                f"{given[0]}: {named[given[0]]}",
                f"give data.columns.{first} and data.columns.{second}",
            )
    if "chosen" in named and "image_0" in named:
        raise UserError(
            "data.columns names the pictures twice.", str(dict(named)), "keep image_0, image_1 or chosen, rejected"
        )
    if "chosen" in named:
        return (named["chosen"], named["rejected"]), ("chosen", "rejected"), True
    if "image_0" in named:
        pair = (named["image_0"], named["image_1"])
        return pair, _sides_of(*pair), False
    return _recognised_pictures([column for column in columns if column not in named.values()], address)


def _recognised_pictures(columns: Sequence[str], address: str) -> tuple[tuple[str, str], tuple[str, str], bool]:
    known = {spelling(column): column for column in columns}
    if {"jpg0", "jpg1", "label0"} <= set(known):  # Pick-a-Pic, whatever else is there
        return (known["jpg0"], known["jpg1"]), ("0", "1"), False
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for sides in (*OPEN_SIDES, *DECIDED_SIDES):
        candidates = [(stem + sides[0], stem + sides[1]) for stem in map(spelling, STEMS)]
        candidates += [(sides[0] + stem, sides[1] + stem) for stem in map(spelling, STEMS)]
        candidates += [sides] if sides in BARE_SIDES else []
        for first, second in candidates:
            if first in known and second in known:
                found.setdefault(sides, (known[first], known[second]))
    if not found:
        raise _not_pairs(address, "no two columns of pictures are", columns)
    if len(found) > 1:
        raise UserError(
            f"The pictures of {address} can be read in more than one way.",
            "; ".join(" and ".join(pair) for pair in found.values()),
            "say which are meant: data.columns.image_0=... and image_1, or chosen and rejected",
        )
    ((sides, pair),) = found.items()
    return pair, sides, sides in DECIDED_SIDES


def _sides_of(first: str, second: str) -> tuple[str, str]:
    """What the names of two columns differ in, where that is a known pair of endings; else the names."""
    names = spelling(first), spelling(second)
    for sides in OPEN_SIDES:
        if all(name.endswith(side) or name.startswith(side) for name, side in zip(names, sides, strict=True)):
            return sides
    return names


def _not_pairs(address: str, what: str, columns: Sequence[str]) -> UserError:
    return UserError(
        f"{address} is in no known layout of pairs: {what} recognised.",
        f"columns {', '.join(columns) or 'none'}",
        HOW,
    )
