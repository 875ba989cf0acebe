"""What a prediction says about the clean latents and about the noise, whatever the checkpoint predicts."""

from __future__ import annotations

from torch import Tensor


def clean_and_noise(prediction: Tensor, noisy: Tensor, signal: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """x_0 and n with ``x_t = sqrt(A) x_0 + sqrt(1 - A) n``, one of which the network named.

    Args:
        prediction: ``[N, ...]`` output of the network.
        noisy: ``[N, ...]`` x_t.
        signal: ``[N]`` A_t in (0, 1); 0 is allowed for v_prediction and sample.
        prediction_type: epsilon, v_prediction or sample.

    Raises:
        ValueError: another prediction type.
    """
    a = signal.to(noisy).reshape(-1, *[1] * (noisy.dim() - 1))
    root, rest = a.sqrt(), (1.0 - a).sqrt()
    if prediction_type == "epsilon":
        return (noisy - rest * prediction) / root, prediction
    if prediction_type == "v_prediction":
        return root * noisy - rest * prediction, root * prediction + rest * noisy
    if prediction_type == "sample":
        return prediction, (noisy - root * prediction) / rest
    raise ValueError(f"no rule for prediction type {prediction_type!r}")


def at_level(clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """``sqrt(A) x_0 + sqrt(1 - A) n`` at levels A ``[N]``: a deterministic (DDIM) step lands here."""
    a = signal.to(clean).reshape(-1, *[1] * (clean.dim() - 1))
    return a.sqrt() * clean + (1.0 - a).sqrt() * noise
