"""Samplers by the names people know them by, made from a checkpoint's own noise schedule.

A sampler is how the denoising steps are taken; what noise means, and at which of its levels the steps lie, belongs to
the checkpoint and is carried over: betas, prediction type, zero terminal SNR, spacing of the timesteps. Each by name,
because diffusers' ``from_config`` passes only what the file of a checkpoint spells out: where it leaves the betas to
its own scheduler class, Heun and KDPM2 would put their own, other defaults in their place.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

from reward_models.errors import nearest_of_many
from t2i_align.errors import UserError

ALL = frozenset({"epsilon", "v_prediction", "sample"})
NOT_SAMPLE = frozenset({"epsilon", "v_prediction"})
SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
"""What the checkpoint decides; everything else is the sampler's."""


@dataclass(frozen=True)
class Sampler:
    """One entry of ``SAMPLERS``.

    Attributes:
        kind: class in diffusers.
        options: of its constructor, which make it the method of this name.
        predictions: prediction types its steps are written for.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    predictions: frozenset[str] = ALL


_MULTISTEP = {"solver_order": 2, "solver_type": "midpoint"}
_DPM = {**_MULTISTEP, "algorithm_type": "dpmsolver++"}
_SDE = {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"use_karras_sigmas": True}

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler"),
    "ddpm": Sampler("DDPMScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler_karras": Sampler("EulerDiscreteScheduler", _KARRAS),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", predictions=NOT_SAMPLE),
    "heun": Sampler("HeunDiscreteScheduler"),
    "dpm2": Sampler("KDPM2DiscreteScheduler", predictions=NOT_SAMPLE),
    "dpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", predictions=NOT_SAMPLE),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", _DPM),
    "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS}),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", _SDE),
    "dpmpp_2m_sde_karras": Sampler("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
    "unipc": Sampler("UniPCMultistepScheduler"),
    "deis": Sampler("DEISMultistepScheduler"),
    "lms": Sampler("LMSDiscreteScheduler"),
    "lms_karras": Sampler("LMSDiscreteScheduler", _KARRAS),
    # The Runge-Kutta steps at the start cost four passes each and are left out in every published checkpoint.
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}, NOT_SAMPLE),
}
ALIASES = {
    "dpmpp": "dpmpp_2m",
    "dpmsolver": "dpmpp_2m",
    "dpmsolverpp": "dpmpp_2m",
    "dpmpp_karras": "dpmpp_2m_karras",
    "dpmpp_sde": "dpmpp_2m_sde",
    "euler_ancestral": "euler_a",
    "plms": "pndm",
}


def sampler_name(word: str) -> str:
    """The name in ``SAMPLERS`` of what somebody wrote, such as ``DPM++ 2M Karras``.

    Case does not count, and spaces, dashes and underscores are one.

    Raises:
        UserError: no such sampler.
    """
    name = re.sub(r"[\s_-]+", "_", word.strip().lower().replace("++", "pp")).removeprefix("k_")
    name = ALIASES.get(name, name)
    if name not in SAMPLERS:
        near = nearest_of_many(name, [*SAMPLERS, *ALIASES])
        raise UserError("The sampler is not known.", word, f"{near}; use one of {', '.join(SAMPLERS)}")
    return name


def make_sampler(name: str, own: Any) -> Any:
    """A scheduler that takes its steps as `name` says, on the noise schedule of another.

    Args:
        name: in ``SAMPLERS``.
        own: scheduler of the checkpoint.

    Raises:
        UserError: the sampler cannot take the checkpoint's noise schedule or prediction type.
    """
    sampler, config = SAMPLERS[name], own.config
    kind = getattr(diffusers, sampler.kind)
    accepted = inspect.signature(kind.__init__).parameters
    _check(name, sampler, own, accepted)
    values = {"clip_sample": False, **{key: config[key] for key in SCHEDULE if key in config}, **sampler.options}
    try:
        return kind.from_config({key: value for key, value in values.items() if key in accepted})
    except (NotImplementedError, ValueError) as error:  # such as a kind of betas it does not know
        raise _refused(name, own, str(error)) from error


def _check(name: str, sampler: Sampler, own: Any, accepted: Mapping[str, Any]) -> None:
    config = own.config
    if "beta_start" not in config:
        raise _refused(name, own, "it has no betas")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in sampler.predictions:
        raise _refused(name, own, f"prediction type {prediction}")
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        raise _refused(name, own, "zero terminal SNR (rescale_betas_zero_snr)")


def _refused(name: str, own: Any, why: str) -> UserError:
    return UserError(
        f"The sampler {name} cannot take this checkpoint's schedule.",
        f"{type(own).__name__}: {why}",
        "use ddim or euler, or leave --sampler out for the checkpoint's own",
    )
