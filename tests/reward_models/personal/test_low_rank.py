"""Low-rank heads: Newton by hand, recovery of synthetic users, certainty, active choice, files."""

import math

import pytest
import torch

from reward_models.errors import RewardModelError
from reward_models.personal.curve import accuracy, few_shot_curve
from reward_models.personal.files import load_head, save_head
from reward_models.personal.low_rank import LowRankConfig, LowRankHead, fit_low_rank
from reward_models.personal.posterior import choose_pair, predict
from reward_models.personal.records import PreferencePairs
from tests.reward_models.personal.users import RANK, WIDTH, answers, tastes


@pytest.fixture(scope="module")
def trained():
    names = [f"train{i}" for i in range(60)]
    pairs = answers(names, tastes(60, seed=1), per_user=40, seed=2)
    return fit_low_rank(pairs, rank=RANK), fit_low_rank(pairs, rank=0)


@pytest.fixture(scope="module")
def newcomers():
    names, own = [f"new{i}" for i in range(40)], tastes(40, seed=3)
    return names, answers(names, own, per_user=32, seed=4), answers(names, own, per_user=60, seed=5, sharpness=1e6)


def by_hand() -> LowRankHead:
    """One direction of difference: margin = a (x_1 - x_2)."""
    head = LowRankHead(LowRankConfig(features=1, rank=1))
    with torch.no_grad():
        head.basis.fill_(1.0)
    return head.requires_grad_(False)


def one(values, label, name="anna"):
    features = torch.tensor(values, dtype=torch.float64).reshape(-1, 1)
    return PreferencePairs.of_one(features, torch.arange(len(features)).reshape(-1, 2), label, name)


def test_map_and_laplace_by_hand():
    user = by_hand().fit_user(one([2.0, 0.0], [1.0]))
    # The MAP solves a = 2 sigmoid(-2 a); the curvature there is 1 + 4 sigmoid(2a) sigmoid(-2a).
    a = user.mean.item()
    p = 1 / (1 + math.exp(-2 * a))
    assert a == pytest.approx(2 * (1 - p), abs=1e-8)
    assert user.covariance.item() == pytest.approx(1 / (1 + 4 * p * (1 - p)), abs=1e-8)
    assert user.certainty == pytest.approx(1 - user.covariance.item())
    assert user.consistency == 1


def test_prediction_averages_over_what_is_not_known():
    head = by_hand()
    user = head.fit_user(one([2.0, 0.0], [1.0]))
    prediction = predict(head, user, one([3.0, 0.0], [0.5]))
    margin, variance = 3 * user.mean.item(), 9 * user.covariance.item()
    assert prediction.margin.item() == pytest.approx(margin)
    expected = 1 / (1 + math.exp(-margin / math.sqrt(1 + math.pi * variance / 8)))
    assert prediction.probability.item() == pytest.approx(expected)
    assert 0.5 < prediction.confidence().item() < 1


def test_a_user_without_pairs_is_the_population_and_says_so():
    user = by_hand().fit_user(one([], []))
    assert (user.mean.item(), user.covariance.item(), user.certainty) == (0, 1, 0)
    assert math.isnan(user.consistency)
    assert "no comparisons" in user.summary()


def test_repetition_does_not_narrow_and_contradiction_widens():
    head = by_hand()
    single = head.fit_user(one([2.0, 0.0], [1.0]))
    thrice = head.fit_user(one([2.0, 0.0] * 3, [1.0] * 3))
    assert torch.equal(single.covariance, thrice.covariance)
    mostly = head.fit_user(one([2.0, 0.0] * 3, [1.0, 1.0, 0.0]))
    evenly = head.fit_user(one([2.0, 0.0] * 2, [1.0, 0.0]))
    assert single.covariance < mostly.covariance < evenly.covariance
    assert evenly.covariance.item() == 1
    assert "both ways" in evenly.summary()


def test_new_users_are_recovered_from_few_pairs(trained, newcomers):
    head, pooled = trained
    names, support, test = newcomers
    own = {name: support.of_user(name) for name in names}
    held_out = {name: test.of_user(name) for name in names}
    curve = few_shot_curve(head, own, held_out, (0, 2, 8, 32), pooled)
    values = [estimate.value for estimate in curve.accuracy]
    assert values == sorted(values)
    assert values[3] > 0.85
    assert curve.gain[2].low > 0.08  # 8 pairs beat the pooled head
    assert list(curve.certainty) == sorted(curve.certainty)
    assert "| 8 |" in curve.table()


def test_another_users_taste_does_not_help(trained, newcomers):
    head, _ = trained
    names, support, test = newcomers
    users = [head.fit_user(support.of_user(name)) for name in names]
    own = [accuracy(head, users[i], test.of_user(name)) for i, name in enumerate(names)]
    swapped = [accuracy(head, users[i - 1], test.of_user(name)) for i, name in enumerate(names)]
    opposite = [
        accuracy(head, head.fit_user(support.of_user(name).flipped()), test.of_user(name)) for name in names[:20]
    ]
    assert sum(own) / 40 > sum(swapped) / 40 + 0.2
    assert sum(opposite) / 20 < 0.35


def test_the_interval_of_a_prediction_is_honest(trained, newcomers):
    head, _ = trained
    names, support, test = newcomers
    right, claimed = [], []
    for name in names:
        pairs = test.of_user(name)
        prediction = predict(head, head.fit_user(support.of_user(name).select(torch.arange(8))), pairs)
        right.append((torch.sign(prediction.margin) == torch.sign(pairs.label - 0.5)).double())
        claimed.append(prediction.confidence())
    assert torch.cat(claimed).mean().item() == pytest.approx(torch.cat(right).mean().item(), abs=0.05)


def test_active_choice_learns_faster_than_asking_in_order(trained, newcomers):
    head, _ = trained
    names, support, test = newcomers
    own = {name: support.of_user(name) for name in names}
    held_out = {name: test.of_user(name) for name in names}
    ordered = few_shot_curve(head, own, held_out, (4,))
    chosen = few_shot_curve(head, own, held_out, (4,), active=True)
    assert chosen.certainty[0] > ordered.certainty[0] + 0.05
    assert chosen.accuracy[0].value > ordered.accuracy[0].value


def test_the_question_is_the_most_informative_one_not_yet_asked():
    head = by_hand()
    user = head.fit_user(one([], []))
    candidates = one([0.1, 0.0, 3.0, 0.0, 1.0, 0.0], [0.5] * 3)
    question = choose_pair(head, user, candidates)
    assert question.index == 1
    assert question.gains[1].item() == pytest.approx(0.5 * math.log(1 + 9 / 4))
    assert choose_pair(head, user, candidates, asked=[1]).index == 2
    with pytest.raises(RewardModelError, match="no pair left"):
        choose_pair(head, user, candidates, asked=[0, 1, 2])


def test_files_give_the_same_head(trained, newcomers, tmp_path):
    head, _ = trained
    loaded = load_head(save_head(head, tmp_path / "head"))
    assert loaded.config == head.config
    pairs = newcomers[1].of_user("new0")
    assert torch.equal(loaded.fit_user(pairs).mean, head.fit_user(pairs).mean)


def test_clear_messages(trained, tmp_path):
    head, _ = trained
    with pytest.raises(RewardModelError, match="not the features of this head"):
        head.fit_user(one([1.0, 0.0], [1.0]))
    with pytest.raises(RewardModelError, match="nothing to learn"):
        fit_low_rank(PreferencePairs.build(torch.zeros(2, WIDTH), torch.tensor([[0, 1]]), [1.0], ["a"]))
    with pytest.raises(RewardModelError, match="from one of them"):
        fit_low_rank(one([1.0, 0.0], [1.0]))
    with pytest.raises(RewardModelError, match="does not hold a personal reward head"):
        load_head(tmp_path)
