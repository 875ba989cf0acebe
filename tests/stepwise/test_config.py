"""The rollout section: presets, what changes them, what is refused."""

import pytest
from pydantic import ValidationError

from t2i_align.stepwise.config import PRESETS, RolloutConfig


def section(**values) -> RolloutConfig:
    return RolloutConfig.model_validate(values)


LRM = {"scorer": {"checkpoint": "lrm"}}
SPM = {"scorer": {"checkpoint": "spm"}}


def test_published_numbers():
    lpo = section(preset="lpo", **LRM)
    assert (lpo.num_inference_steps, lpo.eta, lpo.guidance_scale, lpo.candidates) == (20, 1.0, 5.0, 4)
    assert (lpo.threshold.schedule, lpo.threshold.low, lpo.threshold.high) == ("sigma", 0.35, 0.5)
    assert (lpo.scorer.name, lpo.scorer.timestep, lpo.continuation, lpo.ratio_clip) == ("lrm", "parent", "random", None)
    spo = section(preset="spo", **SPM)
    assert (spo.threshold.schedule, spo.threshold.low, spo.ratio_clip) == ("constant", 0.3, 0.1)
    assert (spo.highest_timestep, spo.scorer.timestep, spo.candidates) == (800, "child", 4)
    tailor = section(preset="tailorpo")
    assert (tailor.candidates, tailor.threshold.low, tailor.continuation) == (2, 0.0, "winner")


def test_keys_beside_a_preset_change_it():
    sdxl = section(preset="lpo", threshold={"low": 0.45, "high": 0.6}, **LRM)
    assert (sdxl.threshold.schedule, sdxl.threshold.low, sdxl.threshold.high) == ("sigma", 0.45, 0.6)
    constant = section(preset="lpo", threshold={"schedule": "constant", "low": 0.4}, **LRM)
    assert constant.threshold.high is None
    pixel = section(preset="lpo", scorer={"name": "pixel", "reward": "hpsv2"})
    assert pixel.scorer.timestep == "child"  # another scorer starts from its own defaults
    assert section(preset="spo", candidates=2, threshold={"low": 0.4}, **SPM).candidates == 2
    plain = section(preset="spo", scorer={"name": "pixel", "reward": "pickscore"})
    assert (plain.scorer.name, plain.threshold.low) == ("pixel", 0.3)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_resolved_section_reads_back(preset):
    given = section(preset=preset, **{"lpo": LRM, "spo": SPM, "tailorpo": {}}[preset])
    assert section(**given.model_dump(mode="json")) == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "lpoo", **LRM}, "did you mean lpo"),
        ({"preset": "lpo"}, "needs checkpoint"),
        ({"preset": "lpo", "scorer": {"checkpoint": "x", "reward": "pickscore"}}, "does not read reward"),
        ({"preset": "lpo", "scorer": {"checkpoint": "x", "channel": 2}}, "does not read channel"),
        ({"preset": "spo"}, "needs checkpoint"),
        ({"preset": "spo", "scorer": {"checkpoint": "x", "timestep": "parent"}}, "own timestep"),
        ({"preset": "spo", "threshold": {"high": 0.5}, **SPM}, "remove high"),
        ({"preset": "tailorpo", "reward_guidance": 0.3, "scorer": {"reward": "oracle"}}, "differentiable"),
        ({"preset": "lpo", "threshold": {"low": 0.6}, **LRM}, "needs high, at least low"),
        ({"preset": "spo", "lowest_timestep": 900, **SPM}, "no step would be branched"),
        ({"preset": "spo", "candidates": 1, **SPM}, "greater than or equal to 2"),
        ({"preset": "spo", "eta": 0.0, **SPM}, "greater than 0"),
        ({"preset": "spo", "candidate": 4, **SPM}, "Extra inputs"),
        ({"scorer": {"name": "channel_mean"}}, "threshold"),
    ],
)
def test_mistakes_are_explained(values, message):
    with pytest.raises(ValidationError, match=message):
        section(**values)
