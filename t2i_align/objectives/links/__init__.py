"""The link slot, :data:`LINKS`."""

from t2i_align.objectives.links.base import Link
from t2i_align.objectives.links.batch import Aot, AotUnpaired, Kto
from t2i_align.objectives.links.labels import SoftLabel, Ternary
from t2i_align.objectives.links.likelihood import Bounded, BoundedPower, Odds
from t2i_align.objectives.links.pairwise import (
    Discopop,
    Exo,
    Hinge,
    NoLink,
    Robust,
    Smoothed,
    Softplus,
    Square,
)
from t2i_align.objectives.links.sides import ApoDown, ApoZero, Bco, Nca, SppoHard, UnbiasedSquare

LINKS: dict[str, type[Link]] = {
    "softplus": Softplus,
    "smoothed": Smoothed,
    "robust": Robust,
    "square": Square,
    "hinge": Hinge,
    "exo": Exo,
    "discopop": Discopop,
    "soft_label": SoftLabel,
    "ternary": Ternary,
    "nca": Nca,
    "bco": Bco,
    "apo_zero": ApoZero,
    "apo_down": ApoDown,
    "sppo_hard": SppoHard,
    "aot": Aot,
    "aot_unpaired": AotUnpaired,
    "kto": Kto,
    "bounded": Bounded,
    "bounded_power": BoundedPower,
    "odds": Odds,
    "unbiased_square": UnbiasedSquare,
    "none": NoLink,
}

__all__ = ["LINKS", "Link"]
