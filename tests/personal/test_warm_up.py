"""The encoder of pairs before training: it foresees what a user will answer, from features alone."""

from __future__ import annotations

import numpy as np
import torch

from t2i_align.data.pair_source import PairSource
from t2i_align.data.tables import PairColumns, PairTable
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.crowd import pairs_by_user
from t2i_align.personal.encoders import make_encoder
from t2i_align.personal.pair_features import PairFeatures
from t2i_align.personal.users import Answered
from t2i_align.personal.warm_up import warm_up


class Table(PairTable):
    """Pairs without pictures."""

    def images(self, row):
        raise AssertionError("features are known")

    def location(self, row):
        return str(row)

    def picture_signature(self):
        return ()


def answered(users: int = 40, per_user: int = 12) -> Answered:
    """Users who like more or less of the first of six features."""
    generator = torch.Generator().manual_seed(0)
    count = users * per_user
    pictures = torch.randn(2 * count, 6, generator=generator)
    index = torch.arange(2 * count).view(count, 2)
    who = torch.arange(count) // per_user
    likes = torch.where(who % 2 == 0, 1.0, -1.0)
    labels = ((pictures[index[:, 0], 0] - pictures[index[:, 1], 0]) * likes > 0).double().numpy()
    columns = PairColumns(
        [f"prompt {row % per_user}" for row in range(count)],
        labels,
        [str(row) for row in range(count)],
        users=[f"user {user}" for user in who.tolist()],
    )
    source = PairSource(Table("memory", columns), np.arange(count), labels, np.ones(count), {})
    features = PairFeatures(pictures, index, torch.zeros(1, 5), torch.zeros(count, dtype=torch.long))
    return Answered(source, features, pairs_by_user(source))


def test_the_encoder_learns_to_foresee_answers_and_repeats_itself() -> None:
    config = PersonalConfig("pair_set", 2, 8, hidden=32, features=6, caption_features=5, extractor="pixels")
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = make_encoder(config)
        assert warm_up(encoder, answered(), support=4, steps=100, seed=1) > 0.7
        assert all(parameter.grad is None for parameter in encoder.parameters())
        trained.append(encoder.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    torch.manual_seed(0)
    assert not torch.equal(make_encoder(config).state_dict()["out.weight"], trained[0]["out.weight"])


def test_others_are_of_the_same_user_and_of_other_prompts() -> None:
    data = answered(users=3, per_user=4)
    assert data.others(5) == [4, 6, 7]
