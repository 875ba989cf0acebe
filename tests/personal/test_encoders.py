"""Encoders, sets of comparisons, mixtures, dropout, fitting a new user."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from t2i_align.errors import UserError
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.encoders import make_encoder
from t2i_align.personal.external import read_external
from t2i_align.personal.fitting import fit_user
from t2i_align.personal.mixtures import drop_users, interpolate, mix
from t2i_align.personal.pair_set import PairSet, distinct_pairs
from tests.personal.common import PAIRS, TABLE


def pairs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, width, generator=generator) for width in (6, 6, 5))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return make_encoder(PAIRS)


def test_the_order_of_the_pairs_does_not_matter(encoder):
    user, order = pairs(5), torch.tensor([3, 0, 4, 1, 2])
    shuffled = tuple(part[order] for part in user)
    tokens = encoder(PairSet.of_users([user, shuffled]))
    assert tokens.shape == (2, 3, 8)
    torch.testing.assert_close(tokens[0], tokens[1])


def test_padding_does_not_matter(encoder):
    alone = encoder(PairSet.of_users([pairs(2)]))
    together = encoder(PairSet.of_users([pairs(2), pairs(5, seed=1)]))
    torch.testing.assert_close(alone[0], together[0])


def test_swapped_preferences_are_another_user(encoder):
    winner, loser, caption = pairs(4)
    tokens = encoder(PairSet.of_users([(winner, loser, caption), (loser, winner, caption)]))
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-2)


def test_answers_that_differ_give_shorter_tokens_than_answers_that_agree(encoder):
    agreeing = tuple(
        part[:1].repeat(6, 1) + 0.01 * noise for part, noise in zip(pairs(1), pairs(6, seed=2), strict=True)
    )
    tokens = encoder(PairSet.of_users([agreeing, pairs(6, seed=3)]))
    assert tokens[0].norm() > tokens[1].norm()


def test_repeats_are_merged_and_cancelled_answers_left_out(caplog):
    winner, loser, caption = pairs(3)
    rows = torch.tensor([0, 0, 1, 1, 2])
    flip = torch.tensor([False, False, False, True, False])[:, None]
    with caplog.at_level(logging.WARNING):
        kept = distinct_pairs(
            torch.where(flip, loser[rows], winner[rows]), torch.where(flip, winner[rows], loser[rows]), caption[rows]
        )
    assert torch.equal(kept[0], winner[[0, 2]])
    assert torch.equal(kept[1], loser[[0, 2]])
    assert "of 5 answers 2 distinct pairs remain; 1 cancelled" in caplog.text


def test_the_majority_of_contradicting_answers_stays():
    winner, loser, caption = pairs(1)
    kept = distinct_pairs(torch.cat([loser, winner, winner]), torch.cat([winner, loser, loser]), caption.repeat(3, 1))
    assert torch.equal(kept[0], winner)


def test_users_without_taste_get_a_message():
    winner, loser, caption = pairs(1)
    with pytest.raises(UserError, match="no comparisons"):
        distinct_pairs(winner[:0], loser[:0], caption[:0])
    with pytest.raises(UserError, match="cancel each other"):
        distinct_pairs(torch.cat([winner, loser]), torch.cat([loser, winner]), caption.repeat(2, 1))
    with pytest.raises(UserError, match="cancel each other"):
        distinct_pairs(winner, winner, caption)
    with pytest.raises(UserError, match="no user to encode"):
        PairSet.of_users([])


def test_features_of_another_width_are_refused(encoder):
    winner, loser, _ = pairs(2)
    with pytest.raises(UserError, match="not the features"):
        encoder(PairSet.of_users([(winner, loser, winner)]))


def test_table_rows_and_unknown_users():
    table = make_encoder(TABLE)
    assert torch.equal(table(["ben", "anna", "ben"]), table.table[[1, 0, 1]])
    with pytest.raises(UserError, match="not in the table"):
        table(["carl"])


def test_external_arrays_ignore_their_length(tmp_path):
    encoder = make_encoder(PersonalConfig("external", token_width=8, features=6))
    arrays = torch.randn(2, 5, 6)
    assert encoder(arrays).shape == (2, 5, 8)
    torch.testing.assert_close(encoder(arrays), encoder(10 * arrays), atol=1e-4, rtol=1e-3)
    save_file({"anna": arrays[0], "ben": arrays[1].half()}, tmp_path / "users.safetensors")
    assert {name: list(a.shape) for name, a in read_external(tmp_path / "users.safetensors").items()} == {
        "anna": [5, 6],
        "ben": [5, 6],
    }
    save_file({"anna": arrays[0], "ben": arrays[1, :2].clone()}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="one shape"):
        read_external(tmp_path / "odd.safetensors")


def test_reward_vectors_are_linear_and_zero_is_null():
    encoder = make_encoder(PersonalConfig("reward_vector", num_tokens=2, token_width=8, names=("clip", "aesthetic")))
    both = encoder(encoder.vector({"clip": 0.5, "aesthetic": 2.0}))
    torch.testing.assert_close(both[0], 0.5 * encoder.table[0] + 2 * encoder.table[1])
    assert not encoder(encoder.vector({})).any()
    with pytest.raises(UserError, match="Unknown reward"):
        encoder.vector({"hps": 1.0})


def test_mixtures():
    anna, ben, null = torch.ones(3, 8), torch.full((3, 8), 5.0), torch.zeros(1, 8)
    assert torch.equal(mix([anna, ben], [0.75, 0.25]), torch.full((3, 8), 2.0))
    assert torch.equal(mix([anna, null], [0.5, 0.5]), torch.full((3, 8), 0.5))
    assert torch.equal(mix([null], [1.0]), null)
    line = interpolate(anna, ben, 5)
    assert line[:, 0, 0].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="2 steps"):
        interpolate(anna, ben, 1)


def test_user_dropout_is_addressed():
    tokens, ids = torch.ones(400, 2, 3), [f"pair{i}" for i in range(400)]
    dropped = drop_users(tokens, ids, [0] * 400, 0.25, seed=1)
    share = (dropped[:, 0, 0] == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.07)
    assert torch.equal(drop_users(tokens[7:9], ids[7:9], [0, 0], 0.25, seed=1), dropped[7:9])
    assert not torch.equal(drop_users(tokens, ids, [1] * 400, 0.25, seed=1), dropped)
    assert torch.equal(drop_users(tokens, ids, [0] * 400, 0.0, seed=1), tokens)


def test_a_new_user_is_a_combination_of_known_ones():
    table = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
    wanted = 0.8 * table[0] - 0.3 * table[2]
    fitted = fit_user(table, lambda tokens: 50 * (tokens - wanted).square().mean(), ridge=0.01)
    assert fitted.coefficients.tolist() == pytest.approx([0.8, 0, -0.3, 0], abs=0.05)
    assert fitted.losses[-1] < 0.02 * fitted.losses[0]
    with pytest.raises(UserError, match="depend on the user"):
        fit_user(table, lambda tokens: torch.tensor(0.0))


@pytest.mark.parametrize(
    "given",
    [
        {"encoder": "tabel"},
        {"encoder": "table"},
        {"encoder": "table", "names": ("null",)},
        {"encoder": "pair_set", "features": 4},
        {"encoder": "external"},
    ],
)
def test_configurations_that_make_no_sense(given):
    with pytest.raises(UserError):
        PersonalConfig(**given)
