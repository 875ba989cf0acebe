"""The same pairs judged by single rewards: for one LoRA per reward, and for a model that takes reward weights."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..errors import UserError
from .pairs import SCHEMA, preference
from .users import feature_names, picture_features

logger = logging.getLogger(__name__)

TIE_MARGIN = 0.1  # of a reward: below it the label would mostly be chance


def run(data: str | Path, rewards: Sequence[str]) -> list[Path]:
    """Write ``pairs/reward-<name>.parquet`` beside the users' pairs, one file per reward; returns them.

    Every pair of pictures is there once, labelled by the reward, with the margins of all rewards, which is what
    ``encoder: reward_vector`` reads.

    Args:
        data: folder that ``user_pairs.run`` wrote.
        rewards: features of pictures, such as ``brightness`` or ``colour=blue``.

    Raises:
        UserError: an unknown feature, or no pairs in the folder.
    """
    if unknown := sorted(set(rewards) - set(feature_names())):
        raise UserError("Unknown reward.", ", ".join(unknown), f"of {', '.join(feature_names())}")
    source = Path(data) / "pairs" / "train.parquet"
    if not source.is_file():
        raise UserError("There are no users' pairs in this folder.", str(source), "t2i-align shapes user-pairs")
    shown = {(row["image_0_uid"], row["image_1_uid"]): row for row in pq.read_table(source).to_pylist()}
    rows = list(shown.values())
    pictures = [Image.open(io.BytesIO(row[side])) for row in rows for side in ("jpg_0", "jpg_1")]
    measured = picture_features(pictures)
    scores = {name: (measured["presence"] * measured[name]).reshape(-1, 2) for name in rewards}
    schema = SCHEMA.append(pa.field("margins", pa.struct([(name, pa.float64()) for name in rewards])))
    written = []
    for name in rewards:
        path = source.with_name(f"reward-{name.replace('=', '-')}.parquet")
        judged = [_judged(row, number, name, scores) for number, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(judged, schema=schema), path, compression="zstd")
        ties = np.mean([row["label_0"] == 0.5 for row in judged])
        logger.info("%s: %d pairs, %.0f %% ties", path, len(judged), 100 * ties)
        written.append(path)
    return written


def _judged(row: dict[str, Any], number: int, judge: str, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    gaps = {name: float(of_pairs[number, 0] - of_pairs[number, 1]) for name, of_pairs in scores.items()}
    label = preference(gaps[judge], 0.0, TIE_MARGIN)
    sign = 1.0 if label >= 0.5 else -1.0  # margins point from the preferred picture to the other
    return {
        **row,
        "user_id": 0,
        "label_0": label,
        "label_1": 1.0 - label,
        "best_image_uid": {1.0: row["image_0_uid"], 0.0: row["image_1_uid"]}.get(label, ""),
        "margins": {name: sign * gap for name, gap in gaps.items()},
    }
