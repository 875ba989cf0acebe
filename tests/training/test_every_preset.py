"""Every preset trains by YAML alone, and starts at the value it promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from t2i_align.objectives import build
from t2i_align.objectives.presets import PRESETS

from .runs import start, write_pairs, write_scored

# Few inner steps, because what they cost is not tested here; one stage, so that every pair counts.
OPTIONS: dict[str, dict[str, Any]] = {
    "curriculum": {"stages": 1},
    "dro": {"num_inference_steps": 3},
    "inpo": {"steps": 2},
    "self_npo": {"latents": {"steps": 2}},
    "smpo": {"steps": 2},
}
DATA: dict[str, dict[str, Any]] = {
    "dcpo": {"loser_captions": "strong"},
    "mdpo": {"list_size": 2},
    "mipo": {"list_size": 2},
    "ternary": {"ties": "soft"},
}
LOG2 = math.log(2)
AT_START = {  # where the value follows from the data
    "curriculum": LOG2,
    "rankdpo": LOG2 * (1 / math.log(2) - 1 / math.log(3)),  # a pair is a list of two with scores 1 and 0
    "smpo": LOG2,
    "ternary": math.log1p(math.exp(0.5)),  # no pair is a tie
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


@pytest.fixture(scope="module")
def scored(pairs: Path) -> Path:
    return write_scored(pairs)


@pytest.mark.parametrize("preset", PRESETS)
def test_trains_by_yaml_alone(tiny_sd: Path, pairs: Path, scored: Path, tmp_path: Path, preset: str) -> None:
    objective = build(preset, **OPTIONS.get(preset, {}))
    rewards = objective.layout == "pair" and objective.data_needs - {"labels", "captions"}
    section = {"preset": preset, **OPTIONS.get(preset, {})}
    first, second = start(tiny_sd, scored if rewards else pairs, tmp_path, section, data=DATA.get(preset, {}))
    value = AT_START.get(preset, objective.value_at_init)
    if value is not None:
        assert first["loss"] == pytest.approx(value, abs=1e-5)
    assert first["grad_norm"] > 0 and math.isfinite(second["loss"]) and second["loss"] != first["loss"]
