"""What repeated and contradictory answers count for."""

import pytest
import torch

from reward_models.errors import RewardModelError
from reward_models.personal.evidence import weigh
from reward_models.personal.records import PreferencePairs

FEATURES = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])


def one(index, label):
    return PreferencePairs.of_one(FEATURES, torch.tensor(index).reshape(-1, 2), label, "anna")


def test_a_pair_repeated_counts_once_whatever_its_order():
    evidence = weigh(one([[0, 1], [1, 0], [0, 1]], [1.0, 0.0, 1.0]))
    assert len(evidence.pairs) == 1
    assert evidence.pairs.label.tolist() == [1.0]
    assert evidence.weight.tolist() == [1.0]
    assert evidence.answers == 3
    assert "2 of 3 answers repeat" in evidence.notes[0]


def test_repeats_are_found_by_their_features():
    doubled = torch.cat([FEATURES, FEATURES])
    pairs = PreferencePairs.of_one(doubled, torch.tensor([[0, 1], [3, 4]]), [1.0, 1.0], "anna")
    assert len(weigh(pairs).pairs) == 1


def test_contradictions_count_for_what_remains():
    evidence = weigh(one([[0, 1], [0, 1], [1, 0], [0, 2], [2, 0]], [1.0, 1.0, 1.0, 1.0, 1.0]))
    # 0-1: two against one, label 2/3, weight 1/3; 0-2: one against one, weight 0.
    assert evidence.pairs.label.tolist() == pytest.approx([2 / 3, 1 / 2])
    assert evidence.weight.tolist() == pytest.approx([1 / 3, 0])
    assert any("answered both ways" in note for note in evidence.notes)


def test_the_label_of_a_merged_pair_follows_its_first_order():
    assert weigh(one([[2, 0], [0, 2]], [1.0, 0.0])).pairs.label.tolist() == [1.0]


def test_an_honest_tie_is_an_answer():
    evidence = weigh(one([[0, 1]], [0.5]))
    assert evidence.weight.tolist() == [1.0]
    assert evidence.notes == ()


def test_no_pairs_and_an_item_with_itself():
    assert "no comparisons" in weigh(one([], [])).notes[0]
    evidence = weigh(one([[1, 1]], [1.0]))
    assert len(evidence.pairs) == 0
    assert "with itself" in evidence.notes[0]
    assert "nothing was learned" in evidence.notes[1]


def test_several_users_are_refused():
    pairs = PreferencePairs.build(FEATURES, torch.tensor([[0, 1], [1, 2]]), [1.0, 0.0], ["anna", "ben"])
    with pytest.raises(RewardModelError, match="one user's"):
        weigh(pairs)
    assert weigh(pairs.of_user("ben")).pairs.label.tolist() == [0.0]


@pytest.mark.parametrize(
    ("index", "label", "message"),
    [([[0, 3]], [1.0], "do not exist"), ([[0, 1]], [1.5], "probability"), ([[0, 1]], [1.0, 0.0], "every pair needs")],
)
def test_broken_records(index, label, message):
    with pytest.raises(RewardModelError, match=message):
        PreferencePairs.build(FEATURES, torch.tensor(index), label, ["anna"])


def test_users_weigh_alike():
    pairs = PreferencePairs.build(FEATURES, torch.tensor([[0, 1]] * 4), [1.0] * 4, ["a", "a", "a", "b"])
    assert pairs.balanced_weights().tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
