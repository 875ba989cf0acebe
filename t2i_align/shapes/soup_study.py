"""Trading rewards at run time in two ways, on one Pareto plot: merged LoRAs, and a model told the weights."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i_align.backbones import identify_model, load_for_sampling
from t2i_align.errors import UserError
from t2i_align.evaluation.sampling import sample_images
from t2i_align.personal.pipeline import load_personal
from t2i_align.personal.soups import merge_loras
from t2i_align.randomness import address_hash
from t2i_align.shapes.users import picture_features

logger = logging.getLogger(__name__)

Draw = Callable[[float], list[Image.Image]]


@dataclass(frozen=True)
class Point:
    """Mean rewards of one mixture.

    Attributes:
        share: weight of the second reward, 1 - share of the first.
        first, second: means over the pictures.
        dominated: another point of any method is at least as good in both and better in one.
    """

    share: float
    first: float
    second: float
    dominated: bool = False


def run(
    loras: Mapping[str, str],
    vector: str,
    prompts: list[str],
    output_dir: str | Path,
    *,
    steps: int = 5,
    num_inference_steps: int = 20,
    guidance_scale: float = 3.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw, measure, and write ``pareto.json`` and ``pareto.png``; returns what the JSON holds.

    Args:
        loras: two rewards (features of pictures, see ``users.feature_names``) -> run of a LoRA trained on that alone.
        vector: run of a ``reward_vector`` adapter that knows both.
        prompts: a picture of each per mixture, from the same noise throughout.
        output_dir: pictures are kept there.
        steps: mixtures from one reward to the other, both included.

    Raises:
        UserError: not two LoRAs, or not an adapter of these rewards.
    """
    if len(loras) != 2:
        raise UserError("A trade-off has two rewards.", f"{len(loras)} given", "give REWARD=RUN twice")
    source = identify_model(vector)
    if source.kind != "user" or source.weights is None:
        raise UserError("This run has no user adapter.", vector, "train one with encoder: reward_vector")
    folder, names = Path(output_dir), list(loras)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [address_hash(seed, "soup_study", i) % 2**32 for i in range(len(prompts))]
    sampling = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "batch_size": 32}

    def sample(pipeline: Any) -> list[Image.Image]:
        return sample_images(pipeline, prompts, seeds, **sampling)

    base = load_for_sampling(source.base.pretrained_model_name_or_path, None, torch.float32, "cpu")
    told = load_for_sampling(vector, None, torch.float32, "cpu")
    personal = load_personal(told, source.weights)

    def of_vector(share: float) -> list[Image.Image]:
        with personal.user(personal.add_rewards("mixture", {names[0]: 1 - share, names[1]: share})):
            return sample(told)

    def of_soup(share: float) -> list[Image.Image]:
        with tempfile.TemporaryDirectory() as place:
            merged = merge_loras(dict(zip(loras.values(), (1 - share, share), strict=True)), Path(place) / "soup")
            return sample(load_for_sampling(str(merged), None, torch.float32, "cpu"))

    shares = np.linspace(0, 1, steps).tolist()
    arms: dict[str, tuple[Draw, list[float]]] = {
        "base": (lambda share: sample(base), [0.0]),
        "soup": (of_soup, shares),
        "reward_vector": (of_vector, shares),
    }
    points = {
        method: [_measure(folder, f"{method}-{share:.2f}", draw, share, names) for share in at]
        for method, (draw, at) in arms.items()
    }
    result = {"rewards": names, "prompts": len(prompts), "points": mark_dominated(points)}
    (folder / "pareto.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, folder / "pareto.png")
    return result


def mark_dominated(points: Mapping[str, list[Point]]) -> dict[str, list[dict[str, Any]]]:
    """The same points as plain data, with `Point.dominated` filled in."""
    everyone = [point for of_method in points.values() for point in of_method]

    def beaten(point: Point) -> bool:
        return any(
            other.first >= point.first
            and other.second >= point.second
            and (other.first > point.first or other.second > point.second)
            for other in everyone
        )

    return {
        method: [{**asdict(point), "dominated": beaten(point)} for point in of_method]
        for method, of_method in points.items()
    }


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Mean of the first reward against that of the second; dominated points are hollow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for method, points in result["points"].items():
        across, up = [p["first"] for p in points], [p["second"] for p in points]
        (line,) = axes.plot(across, up, linewidth=1, label=method)
        for point in points:
            fill = "none" if point["dominated"] else line.get_color()
            axes.plot(point["first"], point["second"], "o", markerfacecolor=fill, markeredgecolor=line.get_color())
            axes.annotate(f"{point['share']:.2f}", (point["first"], point["second"]), fontsize=7)
    axes.set_xlabel(f"mean {result['rewards'][0]}")
    axes.set_ylabel(f"mean {result['rewards'][1]}")
    axes.legend()
    figure.savefig(path, dpi=100)


def _measure(folder: Path, word: str, draw: Draw, share: float, names: list[str]) -> Point:
    path = folder / f"{word}.npy"
    if not path.is_file():
        np.save(folder / "writing.npy", np.stack([np.asarray(image) for image in draw(share)]))
        (folder / "writing.npy").replace(path)
        logger.info("%s: done", word)
    features = picture_features([Image.fromarray(array) for array in np.load(path)])
    means = [float((features["presence"] * features[name]).mean()) for name in names]
    return Point(share, means[0], means[1])
