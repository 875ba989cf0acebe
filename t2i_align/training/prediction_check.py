"""Does the schedule say what the network predicts? The base model is asked once, before the first step."""

from __future__ import annotations

import logging

import torch

from t2i_align.backbones import Backbone
from t2i_align.objectives.error_metrics import mean_squared_error
from t2i_align.randomness import addressed_normal
from t2i_align.training.items import Items

logger = logging.getLogger(__name__)

PICTURES = 4
NOISY = (0.6, 0.9)  # shares of the schedule: at little noise, noise and velocity are nearly the same number


def warn_of_worse_than_zero(backbone: Backbone, items: Items) -> tuple[float, float]:
    """Warn when the base's mean squared error on noisy real latents is above that of always predicting zero.

    A network that was trained on what `backbone.target` asks for is far below it. One that names something else (noise
    where the schedule says velocity, or the reverse) is above it: at A_t near 0 the two are independent. So may be one
    that is given latents of another VAE.

    Args:
        backbone: the policy still equal to the base, or with a reference.
        items: a batch of real pictures, of which a few are used.

    Returns:
        The error, and that of zero: the mean square of the target.
    """
    count = min(PICTURES, len(items.latents))
    latents, last = items.latents[:count], backbone.num_train_timesteps - 1
    timesteps = torch.linspace(NOISY[0] * last, NOISY[1] * last, count).round().long().to(latents.device)
    noise = torch.stack([addressed_normal(latents.shape[1:], 0, "prediction_check", row) for row in range(count)])
    noise = noise.to(latents.device)
    target = backbone.target(latents, noise, timesteps)
    prompt = items.prompt.for_pictures(len(items.latents)).index(slice(0, count))
    time_ids = None if items.time_ids is None else items.time_ids[:count]
    with torch.no_grad(), backbone.reference() if backbone.has_reference else backbone.inference():
        prediction = backbone.predict(backbone.add_noise(latents, noise, timesteps), timesteps, prompt, time_ids)
    error = float(mean_squared_error(prediction, target).mean())
    zero = float(mean_squared_error(torch.zeros_like(target), target).mean())
    if not error <= zero:
        logger.warning(
            "the base model predicts worse than zero on these latents: error %.3g, of zero %.3g, at timesteps %s. Its "
            "scheduler_config.json says prediction_type %s: is that what its weights were trained for, and is the VAE "
            "theirs?",
            error,
            zero,
            timesteps.tolist(),
            backbone.prediction_type,
        )
    return error, zero
