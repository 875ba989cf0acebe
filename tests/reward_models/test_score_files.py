"""Scoring many pictures to parquet: completeness, failures, resuming."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from reward_models import RewardModelError
from reward_models.score_files import SCHEMA, ScoreItem, score_files
from tests.reward_models.golden import noise_image


@pytest.fixture
def items(tmp_path):
    """11 pictures of mixed sizes; number 3 is empty, number 7 truncated."""
    found = []
    for index in range(11):
        path = tmp_path / f"{index}.jpg"
        noise_image(index, 40 + 5 * index, 60).save(path)
        if index == 3:
            path.write_bytes(b"")
        if index == 7:
            path.write_bytes(path.read_bytes()[:300])
        found.append(ScoreItem(f"image-{index}", ["a red fox", "two cats"][index % 2], path))
    return found


def good(items):
    return [item for index, item in enumerate(items) if index not in (3, 7)]


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_failures_and_order(items, tmp_path, pickscore, aesthetic, workers):
    seen = []
    report = score_files(
        [pickscore, aesthetic],
        items,
        tmp_path / "scores.parquet",
        batch_size=4,
        workers=workers,
        part_rows=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.scored, report.resumed) == (9, 0)
    assert [name for name, _ in report.failures] == ["image-3", "image-7"]
    assert "0 bytes" in report.failures[0][1] and "cannot be decoded" in report.failures[1][1]
    lines = (tmp_path / "scores.parquet.failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["image-3", "image-7"]
    assert seen == [(8, 11), (11, 11)]
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.schema == SCHEMA and len(table) == 18
    rows = table.to_pylist()
    assert [row["id"] for row in rows[::2]] == [item.id for item in good(items)]
    assert {row["scorer"] for row in rows} == {"pickscore", "aesthetic"}
    for number, scorer in enumerate((pickscore, aesthetic)):
        scores = scorer.score([item.prompt for item in good(items)], [item.image for item in good(items)])
        mine = rows[number::2]
        torch.testing.assert_close(torch.tensor([row["score"] for row in mine]), scores, rtol=1e-6, atol=1e-5)
        assert {(row["version"], row["preprocessing"]) for row in mine} == {(scorer.version, scorer.preprocessing)}
    assert not (tmp_path / "scores.parquet.parts").exists()


def test_interrupted_run_continues(items, tmp_path, pickscore):
    out = tmp_path / "scores.parquet"

    def stop(done, total):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_files([pickscore], items, out, batch_size=3, workers=0, part_rows=3, progress=stop)
    assert not out.exists()
    # A part whose rows were not yet written counts for nothing.
    (tmp_path / "scores.parquet.parts" / "part-000002.failures").write_text('{"id": "image-8", "reason": "x"}\n')
    report = score_files([pickscore], items, out, batch_size=3, workers=0)
    assert (report.scored, report.resumed) == (9, 6)
    assert [name for name, _ in report.failures] == ["image-3", "image-7"]
    assert [row["id"] for row in pq.read_table(out).to_pylist()] == [item.id for item in good(items)]


def test_parts_of_other_scorers_are_not_mixed(items, tmp_path, pickscore, aesthetic):
    def stop(done, total):
        raise KeyboardInterrupt

    out = tmp_path / "scores.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_files([pickscore], items, out, workers=0, part_rows=1, batch_size=2, progress=stop)
    with pytest.raises(RewardModelError, match="other scorers or versions"):
        score_files([aesthetic], items, out, workers=0)
    assert score_files([aesthetic], items, out, workers=0, resume=False).resumed == 0


def test_wrong_calls(items, tmp_path, pickscore):
    with pytest.raises(RewardModelError, match="each name once"):
        score_files([pickscore, pickscore], items, tmp_path / "a.parquet")
    with pytest.raises(RewardModelError, match="ids must be unique"):
        score_files([pickscore], [items[0], items[0]], tmp_path / "b.parquet", workers=0)
    (tmp_path / "c.parquet").write_text("")
    with pytest.raises(RewardModelError, match="exists already"):
        score_files([pickscore], items, tmp_path / "c.parquet")


def test_nothing_to_score(tmp_path, pickscore):
    assert score_files([pickscore], [], tmp_path / "none.parquet", workers=0).scored == 0
    assert len(pq.read_table(tmp_path / "none.parquet")) == 0
