"""The link slot, :data:`LINKS`."""

from t2i_align.objectives.links.base import Link
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

LINKS: dict[str, type[Link]] = {
    "softplus": Softplus,
    "smoothed": Smoothed,
    "robust": Robust,
    "square": Square,
    "hinge": Hinge,
    "exo": Exo,
    "discopop": Discopop,
    "bounded": Bounded,
    "bounded_power": BoundedPower,
    "odds": Odds,
    "none": NoLink,
}

__all__ = ["LINKS", "Link"]
