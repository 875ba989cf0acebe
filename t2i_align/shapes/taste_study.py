"""Does a user adapter please people it has never met? Measured with synthetic users, whose taste is known.

Every unseen user shows a few pairs; the adapter makes pictures for that user, for the user of opposite taste (the same
pairs, answered the other way), and for the null user, all from the noise of the base model's pictures. Judge is the
user's own taste. A picture of another user judged by this one costs nothing: it is that user's own picture.

Intervals are percentiles of a bootstrap over users and prompts at once: pictures of one prompt share their noise, and
those of one user their tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i_align.backbones import identify_model, load_for_sampling
from t2i_align.errors import UserError
from t2i_align.evaluation.sampling import sample_images
from t2i_align.personal.features import open_extractor
from t2i_align.personal.mixtures import interpolate
from t2i_align.personal.pair_features import pair_features
from t2i_align.personal.pipeline import Personal, load_personal
from t2i_align.personal.who import answers_of
from t2i_align.randomness import address_hash
from t2i_align.shapes.render import contact_sheet
from t2i_align.shapes.users import User, make_user, picture_features, taste_from_features

logger = logging.getLogger(__name__)

REPLICATES = 2000
STRIP_PROMPTS = 4


@dataclass(frozen=True)
class Share:
    """A win rate against the base, ties as half, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Settings:
    """What is sampled.

    Attributes:
        prompts: of the held-out ones.
        shots: pairs that each user shows.
        steps: of the walk between two users, both included.
        scale: of the adapter.
        num_inference_steps, guidance_scale, seed: of the sampler.
    """

    prompts: int = 24
    shots: int = 4
    steps: int = 7
    scale: float = 1.0
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    seed: int = 0


class Study:
    """Draws the pictures of every arm once, and keeps them in `folder`.

    Args:
        run: run or export folder of a user adapter.
        data: what ``shapes user-pairs`` wrote.
        folder: of the study; drawn arms are found again.
        settings: see `Settings`.
    """

    def __init__(self, run: str, data: Path, folder: Path, settings: Settings) -> None:
        self.folder, self.settings, self._run = folder, settings, run
        texts = (data / "prompts" / "heldout.txt").read_text(encoding="utf-8").splitlines()
        self.prompts = texts[: settings.prompts]
        self.seeds = [address_hash(settings.seed, "taste_study", i) % 2**32 for i in range(len(self.prompts))]
        known = json.loads((data / "users.json").read_text(encoding="utf-8"))
        self.users = [make_user(int(name), known["seed"], known["tastes"]) for name in known["unseen"]]
        self._pairs = str(data / "pairs" / "heldout.parquet")
        source = identify_model(run)
        if source.kind != "user" or source.weights is None:
            raise UserError("This run has no user adapter.", run, "train one: configs/shapes/ppd.yaml")
        self._base = source.base.pretrained_model_name_or_path
        self._pipeline: Any = load_for_sampling(run, None, torch.float32, "cpu")
        self._personal: Personal = load_personal(self._pipeline, source.weights)
        (folder / "arms").mkdir(parents=True, exist_ok=True)

    def tokens(self, user: User, opposite: bool = False) -> torch.Tensor:
        """Tokens ``[M, W]`` of a user who shows the first pairs of the file."""
        source = answers_of(self._pairs, str(user.user_id))
        source = source.without(range(self.settings.shots, len(source)), "not shown")
        features = pair_features(source, open_extractor(self._personal.adapter.config.extractor))
        first_wins = [bool((label > 0.5) != opposite) for label in source.labels()]
        return self._personal.add_pairs("shown", *features.shown(list(range(len(source))), first_wins))

    def own(self, user: User, opposite: bool = False) -> list[Image.Image]:
        """Pictures for a user, one per prompt."""
        word = f"{'opposite' if opposite else 'own'}-{user.user_id}"
        return self._arm(word, lambda: self._for(self.tokens(user, opposite)))

    def base(self) -> list[Image.Image]:
        """Pictures of the base model."""
        return self._arm("base", nullcontext)

    def nobody(self) -> list[Image.Image]:
        """Pictures for the null user."""
        return self._arm("null", lambda: self._for(self._personal.tokens("null")))

    def between(self, first: User, second: User) -> list[list[Image.Image]]:
        """Pictures for users between two, per step."""
        walk = interpolate(self.tokens(first), self.tokens(second), self.settings.steps)
        return [
            self._arm(f"between-{first.user_id}-{second.user_id}-{step}", partial(self._for, tokens))
            for step, tokens in enumerate(walk)
        ]

    def other(self, word: str, model: str) -> list[Image.Image]:
        """Pictures of another model on the same noise."""
        return self._arm(word, nullcontext, lambda: load_for_sampling(model, self._base, torch.float32, "cpu"))

    def _for(self, tokens: torch.Tensor) -> AbstractContextManager[None]:
        return self._personal.user(tokens, self.settings.scale)

    def _arm(
        self, word: str, context: Callable[[], AbstractContextManager[None]], model: Callable[[], Any] | None = None
    ) -> list[Image.Image]:
        path = self.folder / "arms" / f"{word}.npy"
        if not path.is_file():
            with context():
                images = sample_images(
                    self._pipeline if model is None else model(),
                    self.prompts,
                    self.seeds,
                    num_inference_steps=self.settings.num_inference_steps,
                    guidance_scale=self.settings.guidance_scale,
                    batch_size=len(self.prompts),
                )
            partial = path.with_name(f"writing-{word}.npy")
            np.save(partial, np.stack([np.asarray(image) for image in images]))
            partial.replace(path)
            logger.info("%s: %d pictures", word, len(images))
        return [Image.fromarray(array) for array in np.load(path)]


def run(
    run_folder: str, data: str | Path, output_dir: str | Path, settings: Settings, pooled: str | None = None
) -> dict[str, Any]:
    """Measure, and write ``taste_study.json``, ``taste_study.md`` and ``strip.png``; returns what the JSON holds.

    Args:
        run_folder: run or export folder of a user adapter (encoder pair_set).
        data: folder that ``t2i-align shapes user-pairs`` wrote.
        output_dir: pictures are kept there; the same call goes on where it was.
        settings: see `Settings`.
        pooled: run of a model that was trained on the same pairs without their users.

    Raises:
        UserError: not a user adapter of pairs, or the folder holds a study with other settings.
    """
    folder = Path(output_dir)
    _claim(folder, {"run": str(run_folder), "data": str(data), **asdict(settings)})
    study = Study(run_folder, Path(data), folder, settings)
    base = picture_features(study.base())
    own = {user.user_id: picture_features(study.own(user)) for user in study.users}
    against = {user.user_id: picture_features(study.own(user, opposite=True)) for user in study.users}
    nobody = picture_features(study.nobody())
    arms: dict[str, Callable[[User], list[dict[str, np.ndarray]]]] = {
        "own": lambda user: [own[user.user_id]],
        "another": lambda user: [pictures for other, pictures in own.items() if other != user.user_id],
        "opposite": lambda user: [against[user.user_id]],
        "null": lambda user: [nobody],
    }
    if pooled is not None:
        of_pooled = picture_features(study.other("pooled", pooled))
        arms["pooled"] = lambda user: [of_pooled]
    rows = {
        word: np.stack([_wins(user, pictures(user), base) for user in study.users]) for word, pictures in arms.items()
    }
    result: dict[str, Any] = {
        "users": len(study.users),
        "prompts": len(study.prompts),
        "shots": settings.shots,
        "win_rate": {word: asdict(share(wins, settings.seed)) for word, wins in rows.items()},
        "between": _walk(study),
    }
    (folder / "taste_study.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "taste_study.md").write_text(table(result), encoding="utf-8")
    return result


def share(wins: np.ndarray, seed: int = 0) -> Share:
    """Mean of ``[U, P]`` outcomes in [0, 1], with an interval over users and prompts."""
    rng = np.random.default_rng([seed, 8])
    users, prompts = wins.shape
    means = []
    for _ in range(REPLICATES):
        rows = wins[rng.integers(users, size=users)]
        means.append(rows[:, rng.integers(prompts, size=prompts)].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return Share(float(wins.mean()), float(low), float(high))


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{result['users']} users never met in training, {result['shots']} pairs each, {result['prompts']} prompts.",
        "",
        "| pictures for | wins against the base, judged by the user |",
        "| --- | --- |",
        *(f"| {word} | {Share(**values)} |" for word, values in result["win_rate"].items()),
        "",
    ]
    walk = result["between"]
    lines += [
        f"From user {walk['first']} to {walk['second']}: mean {walk['attribute']} and both users' mean taste.",
        "",
    ]
    lines += [f"| share of {walk['second']} | {walk['attribute']} | taste {walk['first']} | taste {walk['second']} |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += [
        f"| {row['share']:.2f} | {row['value']:.3f} | {row['first']:.3f} | {row['second']:.3f} |"
        for row in walk["rows"]
    ]
    return "\n".join(lines) + "\n"


def _wins(user: User, arms: Sequence[dict[str, np.ndarray]], base: dict[str, np.ndarray]) -> np.ndarray:
    """``[P]``: whether the user likes a picture better than the base's, ties as half, averaged over the arms."""
    before = taste_from_features(user, base)
    return np.stack([(np.sign(taste_from_features(user, arm) - before) + 1) / 2 for arm in arms]).mean(0)


def _walk(study: Study) -> dict[str, Any]:
    """From the user who likes the dark most to the one who likes light most: brightness on the way."""
    liking = [user.weights.get("brightness", 0.0) for user in study.users]
    first, second = study.users[int(np.argmin(liking))], study.users[int(np.argmax(liking))]
    arms = study.between(first, second)
    shown = [
        image for number in range(min(STRIP_PROMPTS, len(study.prompts))) for image in (arm[number] for arm in arms)
    ]
    contact_sheet(shown, columns=len(arms)).save(study.folder / "strip.png")
    rows = []
    for step, arm in enumerate(arms):
        features = picture_features(arm)
        rows.append(
            {
                "share": step / (len(arms) - 1),
                "value": float(features["brightness"].mean()),
                "first": float(taste_from_features(first, features).mean()),
                "second": float(taste_from_features(second, features).mean()),
            }
        )
    return {"first": first.user_id, "second": second.user_id, "attribute": "brightness", "rows": rows}


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    text = json.dumps(settings, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError("The folder holds a study with other settings.", str(folder), "choose another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
