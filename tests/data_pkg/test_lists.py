"""Lists and derived columns, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from t2i_align.data.derived import derive, difficulty, frequencies
from t2i_align.data.list_provider import ListProvider
from t2i_align.data.lists import open_lists
from t2i_align.data.provider import PairProvider
from t2i_align.data.sources import open_source
from t2i_align.errors import UserError

from .make import FakeBackbone, data_config, pickapic, run_config, write_jsonl, write_parquet


def ranked_file(folder: Path, **row: list) -> Path:
    rows = [{"prompt": f"p{i}", "images": [f"{i}{k}.png" for k in "abcd"], **row} for i in range(3)]
    return write_jsonl(folder / "lists.jsonl", rows)


def provider(source: Path, layout: str = "", batch_size: int = 2, **options) -> PairProvider:
    more = {"batch_size": batch_size, "accumulation": 1, "device": "cpu"}
    config = run_config(source, **options)
    if layout:
        return ListProvider(config, FakeBackbone(), layout, **more)
    return PairProvider(config, FakeBackbone(), **more)


def test_difficulty_is_the_place_from_the_widest_gap_down() -> None:
    assert difficulty(np.array([0.1, 0.4, 0.2, 0.3])).tolist() == [0.75, 0.0, 0.5, 0.25]


def test_frequencies_count_the_neighbours() -> None:
    gaps = np.array([0.0, 0.01, 0.02, 1.0])
    assert frequencies(gaps).tolist() == [0.75, 0.75, 0.75, 0.25]


def test_user_shares_make_users_equal(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0] * 4, user_id=[7, 7, 7, 8]))
    shares = derive(open_source(data_config(file)), {"user_shares"})["user_shares"]
    assert shares.tolist() == [1.5, 1.5, 1.5, 0.5] and (1 / shares).mean() == pytest.approx(1.0)
    nobody = write_parquet(tmp_path / "q.parquet", pickapic([1.0] * 4, user_id=[7, None, 7, 8]))
    with pytest.raises(UserError, match="1 of 4 pairs"):
        derive(open_source(data_config(nobody)), {"user_shares"})


def test_scores_follow_the_winner_and_become_a_margin(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0], score_0=[0.9, 0.2], score_1=[0.1, 0.7]))
    config = run_config(file)
    pairs = PairProvider(
        config, FakeBackbone(), batch_size=2, accumulation=1, device="cpu", needs={"scores", "difficulty"}
    )
    batch = pairs.batch(0, 0)
    by_id = dict(
        zip(
            batch.ids,
            zip(batch.columns["scores"].tolist(), batch.columns["difficulty"].tolist(), strict=True),
            strict=True,
        )
    )
    assert by_id["0"] == (pytest.approx([0.9, 0.1]), 0.0) and by_id["1"] == (pytest.approx([0.7, 0.2]), 0.5)
    assert batch.margins["score"].tolist() == pytest.approx([s[0] - s[1] for s in batch.columns["scores"].tolist()])


def test_scores_that_are_no_gains_are_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0], score_0=[21.0], score_1=[20.0]))
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        derive(open_source(data_config(file)), {"scores"})
    alone = write_parquet(tmp_path / "q.parquet", pickapic([1.0], score_0=[0.5]))
    with pytest.raises(UserError, match="alone"):
        open_source(data_config(alone))


def test_several_margins_need_a_name(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0], margins=[{"a": 1.0, "b": 2.0}] * 2))
    source = open_source(data_config(file))
    with pytest.raises(UserError, match="told which reward margin"):
        derive(source, {"difficulty"})
    assert set(derive(source, {"difficulty"}, "b")) == {"difficulty"}


def test_ranks_become_win_shares(tmp_path: Path) -> None:
    source = open_source(data_config(ranked_file(tmp_path, ranks=[2, 1, 3, 3])))
    lists = open_lists(source, "ranked", None, False, 0)
    assert len(lists.items) == 3 and lists.size == 4
    assert lists.items[0].scores == pytest.approx((2 / 3, 1.0, 1 / 6, 1 / 6))
    halves = open_lists(source, "group", None, False, 0).items[0]
    assert halves.scores == pytest.approx((1.0, 2 / 3, 1 / 6, 1 / 6))


def test_a_list_batch_holds_every_picture_where_its_score_is(tmp_path: Path) -> None:
    file = ranked_file(tmp_path, scores=[0.2, 0.9, 0.4, 0.1])
    lists = provider(file, "ranked")
    batch = lists.batch(0, 0)
    assert batch.latents.shape == (8, 3, 4, 4) and batch.scores.tolist()[0] == pytest.approx([0.2, 0.9, 0.4, 0.1])
    pair = provider(file).source
    for item, name in enumerate(batch.ids):
        index = [one.list_id for one in lists._lists.items].index(name)
        for place in range(4):
            row, side = lists._lists.items[index].pictures[place]
            assert pair.pair_ids()[row].split("/")[1].split("-")[side] == str(place)
            read = lists._training.read(row, lists._transform.geometry(name, 0))[side].data
            assert torch.equal(batch.latents[place * 2 + item], lists._training.latents(read[None])[0])


def test_subsets_change_with_the_epoch_and_only_with_it(tmp_path: Path) -> None:
    lists = provider(ranked_file(tmp_path, scores=[0.2, 0.9, 0.4, 0.1]), "ranked", 3, list_size=2)
    drawn = [dict(zip((b := lists.batch(step, 0)).ids, b.scores.tolist(), strict=True)) for step in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len({str(one["p0"] if "p0" in one else list(one.values())) for one in drawn}) > 1


def test_pairs_of_one_prompt_make_groups(tmp_path: Path) -> None:
    captions = ["a", "b", "A ", "a", "b"]
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0, 0.0, 1.0, 1.0], caption=captions))
    groups = open_lists(open_source(data_config(file)), "group", 4, False, 0)
    assert [one.pictures for one in groups.items] == [
        ((0, 0), (2, 1), (0, 1), (2, 0)),
        ((1, 1), (4, 0), (1, 0), (4, 1)),
    ]


def test_the_control_deals_scores_out_at_random(tmp_path: Path) -> None:
    source = open_source(data_config(ranked_file(tmp_path, scores=[0.2, 0.9, 0.4, 0.1])))
    true = [one.scores for one in open_lists(source, "ranked", None, False, 0).items]
    dealt = [one.scores for one in open_lists(source, "ranked", None, True, 0).items]
    assert true != dealt and [sorted(one) for one in true] == [sorted(one) for one in dealt]
