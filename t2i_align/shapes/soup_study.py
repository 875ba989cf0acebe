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

from reward_models.files import complete_file
from t2i_align.backbones import identify_model, load_for_sampling
from t2i_align.errors import UserError
from t2i_align.evaluation.generate import identify
from t2i_align.evaluation.sampling import sample_images
from t2i_align.personal.pipeline import load_personal
from t2i_align.personal.soups import merge_loras
from t2i_align.randomness import address_hash
from t2i_align.shapes.taste_arms import claim
from t2i_align.shapes.users import picture_features

logger = logging.getLogger(__name__)

REPLICATES = 2000
Draw = Callable[[float], list[Image.Image]]


@dataclass(frozen=True)
class Point:
    """Mean rewards of one mixture, with 95 % intervals of the gains over the base on the same noise.

    Attributes:
        share: weight of the second reward, 1 - share of the first.
        first, second: means over the pictures.
        first_gain, second_gain: lower and upper end of what was gained over the base.
        dominated: another point of any method is at least as good in both and better in one.
    """

    share: float
    first: float
    second: float
    first_gain: tuple[float, float] = (0.0, 0.0)
    second_gain: tuple[float, float] = (0.0, 0.0)
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
        UserError: not two LoRAs, not an adapter of these rewards, or a folder with pictures of others.
    """
    if len(loras) != 2:
        raise UserError("A trade-off has two rewards.", f"{len(loras)} given", "give REWARD=RUN twice")
    source = identify_model(vector)
    if source.kind != "user" or source.weights is None:
        raise UserError("This run has no user adapter.", vector, "train one with encoder: reward_vector")
    folder, names = Path(output_dir), list(loras)
    sampling = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "batch_size": 32}
    weights = {name: identify(model, None)[1] for name, model in {**loras, "reward_vector": vector}.items()}
    claim(folder, {"weights": weights, "prompts": prompts, "steps": steps, "seed": seed, **sampling})
    seeds = [address_hash(seed, "soup_study", i) % 2**32 for i in range(len(prompts))]

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
    scores = {
        method: np.stack([_measure(folder, f"{method}-{share:.2f}", draw, share, names) for share in at])
        for method, (draw, at) in arms.items()
    }
    picks = np.random.default_rng([seed, 9]).integers(len(prompts), size=(REPLICATES, len(prompts)))
    points = {method: _points(scores[method], scores["base"][0], arms[method][1], picks) for method in arms}
    areas = {method: _area_interval(scores[method], scores["base"][0], picks) for method in arms if method != "base"}
    result = {"rewards": names, "prompts": len(prompts), "points": mark_dominated(points), "area": areas}
    (folder / "pareto.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, folder / "pareto.png")
    return result


def area(points: np.ndarray, origin: np.ndarray) -> float:
    """What a set of trade-offs ``[N, 2]`` has over a starting point ``[2]``: the area between it and the front."""
    total, height = 0.0, float(origin[1])
    for first, second in sorted(points.tolist(), reverse=True):  # from the best in the first reward down
        if first > origin[0] and second > height:
            total += (first - float(origin[0])) * (second - height)
            height = second
    return total


def _points(scores: np.ndarray, base: np.ndarray, shares: list[float], picks: np.ndarray) -> list[Point]:
    """Points of one method from rewards ``[mixtures, prompts, 2]``, against ``[prompts, 2]``."""
    found = []
    for share, of_mixture in zip(shares, scores, strict=True):
        low, high = np.quantile((of_mixture - base)[picks].mean(1), [0.025, 0.975], axis=0).tolist()
        first, second = of_mixture.mean(0).tolist()
        found.append(Point(share, first, second, (low[0], high[0]), (low[1], high[1])))
    return found


def _area_interval(scores: np.ndarray, base: np.ndarray, picks: np.ndarray) -> dict[str, float]:
    drawn = [area(scores[:, rows].mean(1), base[rows].mean(0)) for rows in picks]
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return {"value": area(scores.mean(1), base.mean(0)), "low": low, "high": high}


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
    """Mean of the first reward against that of the second; dominated points are hollow, bars are `Point` intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for method, points in result["points"].items():
        across, up = [p["first"] for p in points], [p["second"] for p in points]
        (line,) = axes.plot(across, up, linewidth=1, marker="*" if method == "base" else None, label=method)
        before = result["points"]["base"][0]
        for point in points:
            if method != "base":
                bars = {axis: _bar(point, before, axis) for axis in ("first", "second")}
                faint: dict[str, Any] = {"ecolor": line.get_color(), "elinewidth": 0.7, "alpha": 0.45}
                axes.errorbar(point["first"], point["second"], xerr=bars["first"], yerr=bars["second"], **faint)
            fill = "none" if point["dominated"] else line.get_color()
            axes.plot(point["first"], point["second"], "o", markerfacecolor=fill, markeredgecolor=line.get_color())
            if method != "base":
                place: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
                axes.annotate(f"{point['share']:.2f}", (point["first"], point["second"]), **place)
    axes.set_xlabel(f"mean {result['rewards'][0]}")
    axes.set_ylabel(f"mean {result['rewards'][1]}")
    axes.set_title(f"numbers: weight of {result['rewards'][1]}", fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=100)


def _bar(point: Mapping[str, Any], base: Mapping[str, Any], axis: str) -> list[list[float]]:
    """Lengths of the error bar of a mean, below and above."""
    gain = point[axis] - base[axis]
    low, high = point[f"{axis}_gain"]
    return [[max(0.0, gain - low)], [max(0.0, high - gain)]]


def _measure(folder: Path, word: str, draw: Draw, share: float, names: list[str]) -> np.ndarray:
    """Rewards ``[prompts, 2]`` of a mixture's pictures, which are drawn once and kept."""
    path = folder / f"{word}.npy"
    if not path.is_file():
        drawn = np.stack([np.asarray(image) for image in draw(share)])
        with complete_file(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, drawn)
        logger.info("%s: done", word)
    features = picture_features([Image.fromarray(array) for array in np.load(path)])
    return np.stack([features["presence"] * features[name] for name in names], axis=1)
