"""Which keys of a reward model's YAML file hold text, whichever of the three kinds of file it is."""

from __future__ import annotations

from reward_models.training.config import RewardTrainingConfig
from t2i_align.config.texts import TextKeys, text_keys
from t2i_align.rewards.noisy import NoisyRewardConfig
from t2i_align.rewards.personal import PersonalRewardConfig
from t2i_align.rewards.training import PretrainingConfig, RewardDataConfig


def reward_keys() -> TextKeys:
    """For ``merge``, before it is known which kind the file is."""
    return text_keys(
        PersonalRewardConfig,
        NoisyRewardConfig,
        RewardTrainingConfig,
        ("data", RewardDataConfig),
        ("pretraining", PretrainingConfig),
    )
