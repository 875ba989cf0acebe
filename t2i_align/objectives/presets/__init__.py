"""The presets, :data:`PRESETS`: published objectives as tuples of slot choices."""

from t2i_align.objectives.presets.base import Preset
from t2i_align.objectives.presets.diffusion import DIFFUSION_PRESETS
from t2i_align.objectives.presets.language import LANGUAGE_PRESETS
from t2i_align.objectives.presets.policy import POLICY_PRESETS

PRESETS: dict[str, Preset] = DIFFUSION_PRESETS | POLICY_PRESETS | LANGUAGE_PRESETS

__all__ = ["PRESETS", "Preset"]
