"""The error slot, :data:`ERRORS`."""

from t2i_align.objectives.error_metrics import CleanError, EpsilonError, ErrorMetric, PredictionError, VelocityError
from t2i_align.objectives.feature_error import PerceptualError

ERRORS: dict[str, type[ErrorMetric]] = {
    "prediction": PredictionError,
    "epsilon": EpsilonError,
    "velocity": VelocityError,
    "clean": CleanError,
    "perceptual": PerceptualError,
}
