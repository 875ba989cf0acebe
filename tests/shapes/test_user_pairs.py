"""Pairs that synthetic users answered: who is asked what, and what the answers say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from t2i_align.errors import UserError
from t2i_align.evaluation.scorers import open_scorer
from t2i_align.shapes import assets
from t2i_align.shapes.pairs import SCHEMA, encode_jpeg
from t2i_align.shapes.render import render
from t2i_align.shapes.user_pairs import SPLITS, Shown, answers, run
from t2i_align.shapes.users import make_user, picture_features, taste_score
from t2i_align.shapes.world import Scene, parse_caption


def shown(count: int = 12) -> Shown:
    """Pairs of a red and a blue figure on grounds of different brightness."""
    files = []
    for i in range(count):
        scenes = [Scene("circle", "red", "large", "plain", "in the centre", "white")]
        scenes.append(Scene("star", "blue", "large", "plain", "in the centre", "charcoal" if i % 2 else "white"))
        files.append(tuple(encode_jpeg(render(scene)) for scene in scenes))
    pictures = [Image.open(io.BytesIO(file)) for pair in files for file in pair]
    uids = [(f"{i}a", f"{i}b") for i in range(count)]
    return Shown([f"a shape {i // 2}" for i in range(count)], files, uids, picture_features(pictures))


def test_answers_follow_the_taste_of_each_user() -> None:
    data, users = shown(), [make_user(0), make_user(0).opposite(), make_user(7)]
    rows = answers(data, [user for user in users if user.user_id >= 0], per_user=8, seed=0, tie_margin=0.0)
    assert len(rows) == 16 and len({row["ranking_id"] for row in rows}) == 16
    for row in rows:
        pictures = [Image.open(io.BytesIO(row[name])) for name in ("jpg_0", "jpg_1")]
        first, second = taste_score(make_user(row["user_id"]), pictures)
        assert row["label_0"] == float(first > second)
    asked = [{row["image_0_uid"] for row in rows if row["user_id"] == user} for user in (0, 7)]
    assert all(len(of_user) == 8 for of_user in asked) and asked[0] != asked[1]  # nobody is asked twice
    more = answers(data, users[:1], per_user=12, seed=0, tie_margin=0.0)
    assert [row["image_0_uid"] for row in more[:8]] == [row["image_0_uid"] for row in rows[:8]]
    assert all(row["label_0"] == 0.5 for row in answers(data, users[:1], 4, seed=0, tie_margin=2.0))


def test_run_keeps_users_and_prompts_apart(tiny_run: Path, tmp_path: Path) -> None:
    sizes = {"num_users": 3, "num_unseen": 2, "pairs_per_user": 2, "num_train": 3, "num_heldout": 2}
    run(tiny_run / "base", tmp_path, **sizes)
    train, heldout = (pq.read_table(tmp_path / "pairs" / f"{split}.parquet") for split in ("train", "heldout"))
    assert train.schema.equals(SCHEMA) and (train.num_rows, heldout.num_rows) == (6, 4)
    for column in ("user_id", "caption", "image_0_uid", "ranking_id"):
        assert not set(train[column].to_pylist()) & set(heldout[column].to_pylist())
    users = json.loads((tmp_path / "users.json").read_text())
    assert set(users["unseen"]) == {str(user) for user in heldout["user_id"].to_pylist()}
    assert users["train"]["1"] == make_user(1).weights


def test_other_users_may_judge_the_same_pictures(tiny_run: Path, tmp_path: Path) -> None:
    sizes = {"num_users": 2, "num_unseen": 1, "pairs_per_user": 2}
    run(tiny_run / "base", tmp_path / "first", num_train=3, num_heldout=2, **sizes)
    run(tiny_run / "base", tmp_path / "again", pictures=tmp_path / "first", tastes=("size",), **sizes)
    for split in ("train", "heldout"):
        first, again = (pq.read_table(tmp_path / name / f"pairs/{split}.parquet") for name in ("first", "again"))
        assert set(again["jpg_0"].to_pylist()) <= set(first["jpg_0"].to_pylist())
    assert all(
        name.startswith("size=") for name in json.loads((tmp_path / "again/users.json").read_text())["train"]["0"]
    )
    with pytest.raises(UserError, match="no users' pairs"):
        run("shapes:base", tmp_path / "none", pictures=tmp_path / "nowhere")


def test_users_may_judge_the_packaged_pictures(tmp_path: Path) -> None:
    sizes = {"num_users": 4, "num_unseen": 2, "pairs_per_user": 5, "num_train": 9, "num_heldout": 6}
    run("shapes:base", tmp_path / "a", pictures="shapes:pairs", tastes=("brightness",), **sizes)
    packaged = {
        uid: (row["caption"], row[f"jpg_{side}"])
        for split in ("train", "heldout")
        for row in pq.read_table(assets.pairs_path(split)).to_pylist()
        for side, uid in enumerate((row["image_0_uid"], row["image_1_uid"]))
    }
    train, heldout = (pq.read_table(tmp_path / "a" / f"pairs/{split}.parquet").to_pylist() for split in SPLITS)
    assert (len(train), len(heldout)) == (20, 10)
    assert not {row["caption"] for row in train} & {row["caption"] for row in heldout}
    for row in (*train, *heldout):
        asked = parse_caption(row["caption"])
        assert not {"colour", "background"} & set(asked)
        drawn_for = [packaged[row[f"image_{side}_uid"]] for side in (0, 1)]
        assert [file for _, file in drawn_for] == [row["jpg_0"], row["jpg_1"]]
        assert drawn_for[0][0] != drawn_for[1][0]
        assert all(asked.items() <= parse_caption(caption).items() for caption, _ in drawn_for)
    with pytest.raises(UserError, match="make fewer pairs"):
        run("shapes:base", tmp_path / "b", pictures="shapes:pairs", **{**sizes, "num_heldout": 2000})


def test_impossible_crowds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more pairs than there are"):
        run("shapes:base", tmp_path, pairs_per_user=9, num_train=8)
    with pytest.raises(UserError, match="Unknown taste"):
        run("shapes:base", tmp_path, tastes=("colour", "smell"))


def test_a_taste_judges_as_its_user_does() -> None:
    picture = render(Scene("circle", "red", "large", "plain", "in the centre", "white"))
    scorer = open_scorer("taste:1000003")
    score = scorer.score(["anything"], [picture])["overall"]
    assert scorer.name == "taste:1000003" and score == pytest.approx(taste_score(make_user(1000003), [picture]))
    other = open_scorer("taste:1000003@1").score(["anything"], [picture])["overall"]
    assert not np.allclose(score, other)
    light = open_scorer("taste:1000003:brightness").score(["anything"], [picture])["overall"]
    assert light == pytest.approx(taste_score(make_user(1000003, 0, ("brightness",)), [picture]))
    with pytest.raises(UserError, match="numbered user"):
        open_scorer("taste:anna")
    with pytest.raises(UserError, match="Nobody has this taste"):
        open_scorer("taste:1000003:smell")
