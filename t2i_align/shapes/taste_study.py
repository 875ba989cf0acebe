"""Does a user adapter please people it has never met? Measured with synthetic users, whose taste is known.

Every unseen user shows a few pairs; the adapter makes pictures for that user, for the user of opposite taste (the same
pairs, answered the other way), and for the null user, all from the noise of the base model's pictures. Judge is the
user's own taste. A picture of another user judged by this one costs nothing: it is that user's own picture.

Intervals are percentiles of a bootstrap over users and prompts at once: pictures of one prompt share their noise, and
those of one user their tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2i_align.evaluation.generate import identify
from t2i_align.shapes.render import contact_sheet
from t2i_align.shapes.taste_arms import Settings, Study, claim
from t2i_align.shapes.users import User, picture_features, taste_from_features

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
    weights = identify(run_folder, None)[1]
    claim(folder, {"run": str(run_folder), "weights": weights, "data": str(data), **asdict(settings)})
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
        which = hashlib.blake2b(identify(pooled, None)[1].encode(), digest_size=6).hexdigest()
        of_pooled = picture_features(study.other(f"pooled-{which}", pooled))
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
