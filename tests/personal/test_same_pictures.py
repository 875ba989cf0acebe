"""A pair is its two pictures, whatever the caption and the sides: nobody is shown the answer that is asked for."""

from __future__ import annotations

import numpy as np
import torch

from t2i_align.data.pair_source import PairSource
from t2i_align.data.tables import PairColumns
from t2i_align.personal.crowd import pairs_by_user, with_other_prompts
from t2i_align.personal.pair_features import PairFeatures
from t2i_align.personal.users import Answered
from t2i_align.rewards.personal import _divide

from .test_warm_up import Table

#        user, caption, pictures, label
ANSWERS = (
    ("anna", "a", (0, 1), 1.0),
    ("anna", "b", (1, 0), 0.0),  # the first one's pictures under other words, turned round
    ("anna", "c", (2, 3), 1.0),
    ("anna", "A ", (4, 5), 1.0),  # the first one's prompt
    ("anna", "d", (6, 7), 0.5),  # a tie is never shown
    ("ben", "a", (0, 1), 1.0),
    ("ben", "b", (0, 1), 1.0),
)


def answered() -> tuple[Answered, PairSource]:
    labels = np.array([label for *_, label in ANSWERS])
    columns = PairColumns(
        [caption for _, caption, *_ in ANSWERS],
        labels,
        [str(row) for row in range(len(ANSWERS))],
        users=[user for user, *_ in ANSWERS],
    )
    source = PairSource(Table("memory", columns), np.arange(len(labels)), labels, np.ones(len(labels)), {})
    index = torch.tensor([pictures for *_, pictures, _ in ANSWERS])
    zeros = torch.zeros(len(labels), dtype=torch.long)
    features = PairFeatures(torch.arange(8.0)[:, None], index, torch.zeros(1, 1), zeros)
    return Answered(source, features, pairs_by_user(source)), source


def test_other_words_for_the_same_pictures_are_not_shown() -> None:
    found, _ = answered()
    assert [found.others(row) for row in range(5)] == [[2], [2, 3], [0, 1, 3], [1, 2], [0, 1, 2, 3]]
    assert found.others(5) == [] and found.others(6) == []


def test_pairs_without_others_are_left_out() -> None:
    found, source = answered()
    assert set(with_other_prompts(found.pairs, source)) == {"anna", "ben"}  # by prompts alone
    assert found.showable() == {"anna": [0, 1, 2, 3, 4]}
    assert found.showable() == {
        user: kept for user, rows in found.pairs.items() if (kept := [row for row in rows if found.others(row)])
    }


def test_nobody_is_tested_on_pictures_they_were_asked_about() -> None:
    found, source = answered()
    about = list(zip(source.captions(), found.features.pairs_of_pictures(), strict=True))
    for seed in range(8):
        asked, kept = _divide([0, 1, 2, 3], about, 1, seed)
        expected = [row for row in range(4) if about[row][1] != about[asked[0]][1]]
        prompts = [{0: 0, 3: 0}.get(row, row) for row in (*asked, *kept)]
        assert len(asked) == 1 and set(kept) <= set(expected)
        assert prompts.count(prompts[0]) == 1 and kept
