"""How far the people who answered the same pairs of pictures agree."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from reward_models.personal.disagreement import Disagreement, Level, disagreement, ratings_matrix
from t2i_align.errors import UserError
from t2i_align.personal.crowd import pairs_by_user
from t2i_align.personal.who import everything_of

SHOWN = 3  # annotators named at either end


@dataclass(frozen=True)
class Annotators:
    """Result of `compare_annotators`.

    Attributes:
        names: of the annotators.
        found: statistics, annotators in the order of `names`.
        pairs: different pairs of pictures; ``found.units`` of them have two annotators or more.
        repeated: answers to a pair that the annotator had answered before; they do not count in `found`.
        kept: how many of those say what the first answer said.
    """

    names: list[str]
    found: Disagreement
    pairs: int
    repeated: int
    kept: int

    def render(self) -> str:
        """What to tell a person."""
        lines = [self.found.summary(), f"{len(self.names)} annotators, {self.pairs} pairs of pictures"]
        if self.repeated:
            lines.append(f"{self.repeated} answers repeat a pair; {self.kept} of them stay with the first answer")
        known = [row for row in np.argsort(self.found.with_others) if not np.isnan(self.found.with_others[row])]
        for what, rows in (("least", known[:SHOWN]), ("most", known[: -SHOWN - 1 : -1])):
            shown = ", ".join(f"{self.names[row]} {self.found.with_others[row]:.0%}" for row in rows)
            lines.append(f"{what} often with the majority of the others: {shown or 'nobody can be compared'}")
        return "\n".join(lines)


def compare_annotators(address: str, level: Level = "ordinal") -> Annotators:
    """Krippendorff's alpha and what lies behind it, over the users of a source of pairs.

    Args:
        address: anything ``data.source`` may be, with user ids. A unit is two pictures under one caption, on whichever
            sides they were shown; a rating is 0, 0.5 (tie) or 1.
        level: of measurement; ordinal puts a tie between the two answers.

    Raises:
        UserError: pairs of nobody, or no pair that two users answered.
    """
    source = everything_of(address)
    users = {row: user for user, rows in pairs_by_user(source).items() for row in rows}
    answers: dict[tuple[str, str], float] = {}
    units: set[str] = set()
    repeated = kept = 0
    for row in range(len(source)):
        record = source[row]
        sides = [hashlib.blake2b(side, digest_size=16).hexdigest() for side in (record.image_0, record.image_1)]
        turned = sides[0] > sides[1]
        key = users[row], "\0".join([record.caption, *sorted(sides)])
        rating = 1 - record.label_0 if turned else record.label_0
        if key in answers:
            repeated, kept = repeated + 1, kept + (answers[key] == rating)
        else:
            answers[key] = rating
        units.add(key[1])
    if len(answers) == len(units):
        raise UserError(
            "No pair of pictures was answered by two users.",
            f"{address}: {len(units)} pairs",
            "agreement needs pairs that several people judged; a personal head needs none (rewards train)",
        )
    matrix, names, _ = ratings_matrix([user for user, _ in answers], [unit for _, unit in answers], [*answers.values()])
    return Annotators(names, disagreement(matrix, level, mirrored=True), len(units), repeated, kept)
