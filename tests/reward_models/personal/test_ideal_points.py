"""Ideal points: rewards by hand, two opposed groups recovered, new users, files."""

import pytest
import torch

from reward_models.personal.curve import accuracy
from reward_models.personal.files import load_head, save_head
from reward_models.personal.ideal_points import IdealPointConfig, IdealPointHead, fit_ideal_points
from reward_models.personal.posterior import choose_pair, predict
from reward_models.personal.records import PreferencePairs
from tests.reward_models.personal.users import WIDTH


def group_answers(groups: dict[str, int], per_user: int, seed: int) -> PreferencePairs:
    """Users of group 0 and 1 have ideal points 2 and -2 on the first axis; the nearer item wins."""
    generator = torch.Generator().manual_seed(seed)
    count = len(groups) * per_user
    features = torch.randn(2 * count, WIDTH, generator=generator, dtype=torch.float64)
    ideal = torch.zeros(count, WIDTH, dtype=torch.float64)
    ideal[:, 0] = torch.tensor([2.0 if group == 0 else -2.0 for group in groups.values()]).repeat_interleave(per_user)
    index = torch.arange(2 * count).reshape(count, 2)
    distance = (features[index][:, :, :2] - ideal[:, None, :2]).norm(dim=-1)
    label = (distance[:, 0] < distance[:, 1]).double()
    return PreferencePairs.build(features, index, label, [name for name in groups for _ in range(per_user)])


@pytest.fixture(scope="module")
def head():
    groups = {f"train{i}": i % 2 for i in range(20)}
    return fit_ideal_points(group_answers(groups, 40, seed=0), prototypes=2, width=8, steps=300)


def test_rewards_by_hand():
    head = IdealPointHead(IdealPointConfig(features=2, prototypes=2, width=2)).requires_grad_(False)
    with torch.no_grad():
        head.map[0].weight.copy_(torch.eye(2))
        head.map[0].bias.zero_()
        head.prototypes.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    # Equal logits: the ideal point is (2, 0); distances 5 and 2.
    items = torch.tensor([[5.0, 4.0], [2.0, 2.0]])
    assert head.rewards(items, torch.zeros(2).double()).tolist() == pytest.approx([-5, -2])
    pairs = PreferencePairs.of_one(items, torch.tensor([[0, 1]]), [0.0], "anna")
    assert head.margins(pairs, torch.zeros(2).double()).tolist() == pytest.approx([-3])
    # Towards the first item a step of z along the axis gains 3/5, towards the second nothing; each logit moves z by 1.
    assert head.jacobian(pairs, torch.zeros(2).double())[0].tolist() == pytest.approx([-0.6, 0.6])


def test_new_users_find_their_group(head):
    own, other = {"a": 0, "b": 1}, {"a": 1, "b": 0}
    support, test, opposite = (
        group_answers(own, 12, seed=1),
        group_answers(own, 200, seed=2),
        group_answers(other, 200, seed=2),
    )
    for name in own:
        user = head.fit_user(support.of_user(name))
        assert accuracy(head, user, test.of_user(name)) > 0.85
        assert accuracy(head, user, opposite.of_user(name)) < 0.45
        assert user.certainty > 0.05


def test_no_pairs_gives_the_population_and_pairs_make_predictions_surer(head):
    pairs = group_answers({"a": 0}, 20, seed=3)
    nobody = head.fit_user(pairs.select(torch.arange(0)))
    assert torch.equal(nobody.mean, head.prior_mean)
    assert "no comparisons" in nobody.notes[0]
    somebody = head.fit_user(pairs)
    before, after = (predict(head, user, pairs).deviation.mean() for user in (nobody, somebody))
    assert after < before
    assert 0 <= choose_pair(head, somebody, pairs).index < 20


def test_files_give_the_same_head(head, tmp_path):
    loaded = load_head(save_head(head, tmp_path / "pal"))
    pairs = group_answers({"a": 0}, 5, seed=4)
    assert torch.equal(loaded.margins(pairs, head.prior_mean), head.margins(pairs, head.prior_mean))
