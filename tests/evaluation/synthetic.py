"""Evaluations made of painted squares: no model is sampled, every score is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from t2i_align.evaluation import score
from t2i_align.evaluation.manifest import MANIFEST_FILE, Picture
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.results import Evaluation


class BrightnessScorer:
    """overall = mean brightness in [0, 1]; red = its red channel alone. Counts the pictures it is asked about."""

    name = "brightness"
    version = "1"
    dimensions = ("overall", "red")

    def __init__(self) -> None:
        self.seen = 0

    def score(self, prompts, images):
        self.seen += len(images)
        arrays = [np.asarray(image, dtype=np.float64) / 255 for image in images]
        return {
            "overall": np.array([array.mean() for array in arrays]),
            "red": np.array([array[..., 0].mean() for array in arrays]),
        }


def paint_model(folder: Path, prompts: Sequence[str], levels: np.ndarray) -> Path:
    """A folder as ``generate`` leaves it; picture (prompt, draw) is grey of brightness ``levels[prompt, draw]``/255."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for prompt_index, row in enumerate(levels):
        for draw, level in enumerate(row):
            index = prompt_index * len(row) + draw
            picture = Picture(index, prompt_index, draw, prompts[prompt_index], 1000 + index, f"images/{index:05d}.png")
            Image.new("RGB", (16, 16), (int(level),) * 3).save(folder / picture.file)
            lines.append(json.dumps(asdict(picture)))
    (folder / MANIFEST_FILE).write_text("\n".join(lines) + "\n")
    return folder


def make_evaluation(
    folder: Path,
    levels: Mapping[str, np.ndarray],
    prompts: PromptSet | None = None,
    control: str | None = None,
    **options,
) -> Evaluation:
    """Score painted models; the first one is the baseline."""
    count, draws = next(iter(levels.values())).shape
    prompts = prompts or PromptSet("painted", tuple(f"prompt {index}" for index in range(count)))
    folders = {name: paint_model(folder / name, prompts.prompts, values) for name, values in levels.items()}
    table = score.run(folders, [BrightnessScorer()], folder)
    settings = {
        "prompts": prompts.name,
        "scorers": ["brightness"],
        "seeds_per_prompt": draws,
        "num_inference_steps": 20,
        "guidance_scale": 5.0,
        "seed": 0,
    }
    return Evaluation(
        folder=folder,
        models={name: f"models/{name}" for name in levels},
        baseline=next(iter(levels)),
        control=control,
        prompts=prompts,
        settings=settings,
        scores=table,
        **options,
    )


def levels_of(count: int, wins: int, ties: int = 0, draws: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of (baseline, model) with the given numbers of wins and ties, the rest losses, in mixed order."""
    baseline = np.full((count, draws), 100)
    difference = np.repeat([20, 0, -20], [wins, ties, count - wins - ties])
    order = np.random.default_rng(0).permutation(count)
    return baseline, baseline + difference[order][:, None]
