"""Preference pairs that the synthetic users answered, in the schema of Pick-a-Pic v2.

The pictures are the base model's own, of captions that leave the tasted attributes open, and every pair of pictures is
shown to many users: what is red to one and blue to another is the same picture. The users of `train.parquet` and
those of `heldout.parquet` have nobody in common, nor have the captions.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from ..errors import UserError
from .assets import pairs_path, resolve
from .pairs import MODEL_NAME, SCHEMA, START, encode_jpeg, preference, write_sheet
from .sampling import load_pipeline, sample
from .users import TASTES, User, open_prompts, picture_features, population, taste_from_features
from .world import caption_of, parse_caption

logger = logging.getLogger(__name__)

TIE_MARGIN = 0.05  # of taste scores in [0, 1]: below it a user has no opinion
USERS_FILE = "users.json"
SPLITS = ("train", "heldout")
PACKAGED = "shapes:pairs"
SEED_STEP = 10_000_000  # seeds of the pictures of one split


@dataclass(frozen=True)
class Shown:
    """N pairs of pictures before anybody has judged them.

    Attributes:
        captions: N.
        files: N pairs of encoded pictures.
        uids: N pairs of ids.
        features: `picture_features` of all 2 N pictures, first and second in turn.
    """

    captions: list[str]
    files: list[tuple[bytes, bytes]]
    uids: list[tuple[str, str]]
    features: dict[str, np.ndarray]


def run(
    model: str | Path,
    output_dir: str | Path,
    *,
    num_users: int = 100,
    num_unseen: int = 20,
    pairs_per_user: int = 60,
    num_train: int = 400,
    num_heldout: int = 120,
    seed: int = 0,
    tastes: Sequence[str] = ("colour", "brightness"),
    pictures: str | Path | None = None,
) -> Path:
    """Sample, let the users choose, and write `pairs/{train,heldout}.parquet`, `prompts/*.txt` and `users.json`.

    Args:
        model: a pipeline folder or `shapes:base`.
        output_dir: made if needed.
        num_users: users of the training pairs.
        num_unseen: users of the held-out pairs.
        pairs_per_user: answers of each, to pairs drawn for them.
        num_train, num_heldout: different pairs of pictures per split.
        seed: of pictures, population and draws.
        tastes: what the users care about.
        pictures: folder of an earlier call, whose pictures these users judge instead of new ones; or ``shapes:pairs``,
            whose pictures are paired anew under captions that leave the tasted attributes open.

    Raises:
        UserError: more answers per user than there are pairs, fewer pictures than asked for, or an unknown taste.
    """
    folder = Path(output_dir)
    if str(pictures) == PACKAGED:
        sides = _shown_packaged(num_train, num_heldout, seed, tastes)
        _check(pairs_per_user, min(len(side.captions) for side in sides), tastes)
    elif pictures is not None:
        sides = [_shown_before(Path(pictures) / "pairs" / f"{split}.parquet") for split in SPLITS]
        _check(pairs_per_user, min(len(side.captions) for side in sides), tastes)
    else:
        _check(pairs_per_user, min(num_train, num_heldout), tastes)
        pipeline = load_pipeline(resolve(str(model)) if str(model).startswith("shapes:") else model)
        captions = _captions(num_train, num_heldout, seed, tastes)
        sides = [show(pipeline, prompts, seed, number) for number, prompts in enumerate(captions)]
    crowds = population(num_users, num_unseen, seed, tastes)
    for number, (split, shown, users) in enumerate(zip(SPLITS, sides, crowds, strict=True)):
        prompts = shown.captions
        (folder / "prompts").mkdir(parents=True, exist_ok=True)
        (folder / "prompts" / f"{split}.txt").write_text("\n".join(dict.fromkeys(prompts)) + "\n", encoding="utf-8")
        rows = answers(shown, users, pairs_per_user, seed, number)
        path = folder / "pairs" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd")
        ties = sum(row["label_0"] == 0.5 for row in rows) / len(rows)
        logger.info("%s: %d answers of %d users, %.1f %% ties", path, len(rows), len(users), 100 * ties)
        write_sheet(rows, folder / "pairs" / f"{split}.png")
    everyone = {"seed": seed, "tastes": list(tastes), **{name: _weights(crowd) for name, crowd in _named(crowds)}}
    (folder / USERS_FILE).write_text(json.dumps(everyone, indent=1) + "\n", encoding="utf-8")
    return folder


def show(pipeline: StableDiffusionXLPipeline, captions: Sequence[str], seed: int, split_number: int = 0) -> Shown:
    """Two samples per caption, as they are stored: after compression."""
    first = (seed * 10 + 5 + split_number) * SEED_STEP  # splits 0 to 4 of a seed are those of `pairs`
    seeds = [first + i for i in range(2 * len(captions))]
    twice = [caption for caption in captions for _ in range(2)]
    files = [encode_jpeg(image) for image in sample(pipeline, twice, seeds)]
    uids = [hashlib.sha1(f"{s}/{caption}".encode()).hexdigest()[:16] for s, caption in zip(seeds, twice, strict=True)]
    features = picture_features([Image.open(io.BytesIO(file)) for file in files])
    return Shown(
        list(captions),
        list(zip(files[::2], files[1::2], strict=True)),
        list(zip(uids[::2], uids[1::2], strict=True)),
        features,
    )


def _shown_before(path: Path) -> Shown:
    """The pictures of a file of answers, each pair once."""
    if not path.is_file():
        raise UserError("There are no users' pairs in this folder.", str(path), "t2i-align shapes user-pairs")
    rows = {(row["image_0_uid"], row["image_1_uid"]): row for row in pq.read_table(path).to_pylist()}
    files = [(row["jpg_0"], row["jpg_1"]) for row in rows.values()]
    features = picture_features([Image.open(io.BytesIO(file)) for pair in files for file in pair])
    return Shown([row["caption"] for row in rows.values()], files, list(rows), features)


def _shown_packaged(num_train: int, num_heldout: int, seed: int, tastes: Sequence[str]) -> list[Shown]:
    """Pairs of packaged pictures that agree in what is not tasted and were drawn for different captions.

    A quarter of the captions is held out.
    """
    alike: dict[str, list[tuple[str, bytes, str]]] = {}  # open caption -> (uid, file, caption it was drawn for)
    for split in SPLITS:
        for row in pq.read_table(pairs_path(split)).to_pylist():
            kept = {name: value for name, value in parse_caption(row["caption"]).items() if name not in _open(tastes)}
            pictures = [(row[f"image_{side}_uid"], row[f"jpg_{side}"], row["caption"]) for side in (0, 1)]
            alike.setdefault(caption_of(kept), []).extend(pictures)
    rng = np.random.default_rng([seed, 9])
    captions = [list(alike)[i] for i in rng.permutation(len(alike))]
    sides = []
    for word, chosen, count in (
        ("heldout", captions[: len(captions) // 4], num_heldout),
        ("train", captions[len(captions) // 4 :], num_train),
    ):
        pairs = []
        for caption in chosen:
            shuffled = [alike[caption][i] for i in rng.permutation(len(alike[caption]))]
            neighbours = zip(shuffled[::2], shuffled[1::2], strict=False)
            pairs += [(caption, first, second) for first, second in neighbours if first[2] != second[2]]
        if len(pairs) < count:
            fix = f"lower --num-{word}, or leave --pictures out to sample new ones"
            raise UserError("The packaged pictures make fewer pairs.", f"{len(pairs)} {word}, {count} wanted", fix)
        pairs = [pairs[i] for i in sorted(rng.permutation(len(pairs))[:count])]
        files = [(first[1], second[1]) for _, first, second in pairs]
        features = picture_features([Image.open(io.BytesIO(file)) for pair in files for file in pair])
        uids = [(first[0], second[0]) for _, first, second in pairs]
        sides.append(Shown([caption for caption, _, _ in pairs], files, uids, features))
    return sides[::-1]


def _open(tastes: Sequence[str]) -> set[str]:
    """Attributes that captions leave open; brightness is a matter of colour and ground."""
    return {*tastes, "colour", "background"} if "brightness" in tastes else set(tastes)


def answers(
    shown: Shown, users: Sequence[User], per_user: int, seed: int, split_number: int = 0, tie_margin: float = TIE_MARGIN
) -> list[dict[str, Any]]:
    """Rows: what each user says to `per_user` of the pairs, which are drawn for the user without repetition."""
    rows: list[dict[str, Any]] = []
    for user in users:
        taste = taste_from_features(user, shown.features).reshape(-1, 2)
        drawn = np.random.default_rng([seed, 6, split_number, user.user_id]).permutation(len(taste))[:per_user]
        for pair in drawn.tolist():
            label = preference(taste[pair, 0], taste[pair, 1], tie_margin)
            rows.append(_row(shown, pair, user.user_id, label, len(rows), split_number))
    per_prompt = Counter(row["caption"] for row in rows)
    return [{**row, "num_example_per_prompt": per_prompt[row["caption"]]} for row in rows]


def _row(shown: Shown, pair: int, user_id: int, label: float, number: int, split_number: int) -> dict[str, Any]:
    uids, files = shown.uids[pair], shown.files[pair]
    return {
        "ranking_id": split_number * SEED_STEP + number,
        "user_id": user_id,
        "created_at": START + timedelta(minutes=number),
        "caption": shown.captions[pair],
        "image_0_uid": uids[0],
        "image_1_uid": uids[1],
        "jpg_0": files[0],
        "jpg_1": files[1],
        "model_0": MODEL_NAME,
        "model_1": MODEL_NAME,
        "best_image_uid": {1.0: uids[0], 0.0: uids[1]}.get(label, ""),
        "label_0": label,
        "label_1": 1.0 - label,
        "are_different": files[0] != files[1],
        "has_label": True,
    }


def _captions(num_train: int, num_heldout: int, seed: int, tastes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Captions per pair. Where the open attributes leave few captions, each is used for several pairs."""
    pool = list(dict.fromkeys(open_prompts(20 * (num_train + num_heldout), seed, tastes)))
    if len(pool) < 4:
        raise UserError("Too few captions are left open.", f"tastes {', '.join(tastes)}", "name fewer tastes")
    share = max(1, min(num_heldout, len(pool) // 4))
    heldout, train = pool[:share], pool[share:]
    return [train[i % len(train)] for i in range(num_train)], [heldout[i % share] for i in range(num_heldout)]


def _check(pairs_per_user: int, available: int, tastes: Sequence[str]) -> None:
    if pairs_per_user > available:
        raise UserError(
            "A user cannot answer more pairs than there are.",
            f"{pairs_per_user} of {available}",
            "raise --num-train and --num-heldout, or lower --pairs-per-user",
        )
    if unknown := sorted(set(tastes) - set(TASTES)):
        raise UserError("Unknown taste.", ", ".join(unknown), f"of {', '.join(TASTES)}")


def _named(crowds: tuple[list[User], list[User]]) -> list[tuple[str, list[User]]]:
    return list(zip(("train", "unseen"), crowds, strict=True))


def _weights(users: Sequence[User]) -> dict[str, dict[str, float]]:
    return {str(user.user_id): user.weights for user in users}
