"""The committed recipes of the small heads are valid, explain themselves, and build what they say."""

from pathlib import Path

import pytest

from reward_models.training.loop import starting_scorer
from t2i_align.rewards.training import load_config

FOLDER = Path(__file__).parents[2] / "configs" / "shapes" / "rewards"
NAMES = ("pickscore", "hpsv2.1", "mps")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid_and_small(name):
    run = load_config(FOLDER / f"{name}.yaml")
    assert run.training.scorer == name and str(run.training.output_dir) == f"runs/rewards/{name}"
    assert run.training.checkpoint == f"runs/rewards/{name}-start" and run.pretraining is not None
    scorer = starting_scorer(run.training.model_copy(update={"checkpoint": None}))
    assert sum(parameter.numel() for parameter in scorer.model.parameters()) < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_headed_by_a_comment(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    for heading in ("# For:", "# Launch:", "# Time:", "# Result:"):
        assert heading in text
    for command in ("pretrain", "train"):
        assert f"t2i-align rewards {command} configs/shapes/rewards/{name}.yaml" in text
