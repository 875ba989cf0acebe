"""Both pictures of every pair, and what becomes of a broken one."""

import numpy as np
import pytest

from reward_models import RewardModelError
from reward_models.dominance import dominance_mask, mpo_rule
from reward_models.labels import label_pairs
from reward_models.score_pairs import score_pairs
from tests.reward_models.golden import noise_image

PROMPTS = ["a red fox", "two cats", "a red fox"]


class Pairs:
    """Pair 1 has a broken second picture; pictures are made when asked for."""

    def __call__(self, number):
        return noise_image(number), b"" if number == 1 else noise_image(10 + number, 50, 90)


@pytest.mark.parametrize("workers", [0, 1])
def test_scores_of_both_sides(tmp_path, pickscore, aesthetic, workers):
    options = {"workers": workers, "batch_size": 4}
    result = score_pairs([pickscore, aesthetic], PROMPTS, Pairs(), tmp_path / "s.parquet", ["x", "y", "z"], **options)
    assert result.report.scored == 5
    assert [name for name, _ in result.report.failures] == ["y/b"]
    assert result.complete.tolist() == [True, False, True]
    for number in (0, 2):
        a, b = (float(pickscore.score(PROMPTS[number], [picture])) for picture in Pairs()(number))
        assert result.margins["pickscore"][number] == pytest.approx(a - b, abs=1e-4)
    # What label and filter do next.
    good = result.complete
    a, b = ({n: s[good] for n, s in side.items()} for side in (result.scores_a, result.scores_b))
    labels = label_pairs(a["pickscore"], b["pickscore"], pickscore.preference_scale)
    kept = dominance_mask(a, b, labels.label_a, mpo_rule(["pickscore", "aesthetic"]))
    agree = np.sign(result.margins["pickscore"][good]) == np.sign(result.margins["aesthetic"][good])
    assert kept.tolist() == agree.tolist()


def test_ids_must_fit(tmp_path, pickscore):
    with pytest.raises(RewardModelError, match="2 ids for 3 pairs"):
        score_pairs([pickscore], PROMPTS, Pairs(), tmp_path / "s.parquet", ["x", "y"])
