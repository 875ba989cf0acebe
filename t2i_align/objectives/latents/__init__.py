"""The latents slot, :data:`LATENTS`: from clean latents to noisy ones and their regression target."""

from t2i_align.objectives.latents.base import LAGGING, Lag, LatentRequest, Latents, Noiser, NoisyLatents
from t2i_align.objectives.latents.inversion import DdimInversion
from t2i_align.objectives.latents.noise import IndependentNoise, SharedNoise
from t2i_align.objectives.latents.rollout import PolicyRollout, TruncatedRollout

LATENTS: dict[str, type[Latents]] = {
    "shared_noise": SharedNoise,
    "independent_noise": IndependentNoise,
    "ddim_inversion": DdimInversion,
    "policy_rollout": PolicyRollout,
    "truncated_rollout": TruncatedRollout,
}

__all__ = [
    "LAGGING",
    "LATENTS",
    "DdimInversion",
    "IndependentNoise",
    "Lag",
    "LatentRequest",
    "Latents",
    "Noiser",
    "NoisyLatents",
    "PolicyRollout",
    "SharedNoise",
    "TruncatedRollout",
]
