"""What a score does not say: how pictures, their variety and the scorers' agreement changed on the way."""

from t2i_align.evaluation.drift.appearance import appearance
from t2i_align.evaluation.drift.measure import Drift, measure
from t2i_align.evaluation.drift.trajectory import Trajectory, trajectory

__all__ = ["Drift", "Trajectory", "appearance", "measure", "trajectory"]
