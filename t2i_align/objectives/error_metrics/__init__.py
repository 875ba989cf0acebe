"""The error slot, :data:`ERRORS`: from a prediction and its target to one number per image."""

from t2i_align.objectives.error_metrics.base import Denoised, ErrorMetric, masked_mean, mean_squared_error
from t2i_align.objectives.error_metrics.features import PerceptualError
from t2i_align.objectives.error_metrics.parametrised import CleanError, EpsilonError, PredictionError, VelocityError

ERRORS: dict[str, type[ErrorMetric]] = {
    "prediction": PredictionError,
    "epsilon": EpsilonError,
    "velocity": VelocityError,
    "clean": CleanError,
    "perceptual": PerceptualError,
}

__all__ = [
    "ERRORS",
    "CleanError",
    "Denoised",
    "EpsilonError",
    "ErrorMetric",
    "PerceptualError",
    "PredictionError",
    "VelocityError",
    "masked_mean",
    "mean_squared_error",
]
