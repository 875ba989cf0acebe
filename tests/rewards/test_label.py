"""`t2i-align rewards label | filter | agree | convert-mps` on pairs that the oracle can judge."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from reward_models import RewardModelError
from t2i_align import cli
from t2i_align.data.sources import open_table
from t2i_align.errors import UserError
from t2i_align.rewards.label import filter_pairs, label
from t2i_align.rewards.oracle import PREFERENCE_SCALE, OracleScorer
from t2i_align.rewards.pairs import everything
from t2i_align.shapes.oracle import Oracle
from tests.data_pkg.make import write_parquet

from .conftest import COUNT, shapes_columns


def run(*words):
    return CliRunner().invoke(cli.app, ["rewards", *map(str, words)])


def oracle_gaps(path, dimension="overall"):
    rows = pq.read_table(path).to_pylist()
    sides = [[Image.open(io.BytesIO(row[name])) for row in rows] for name in ("jpg_0", "jpg_1")]
    first, second = (Oracle().score([row["caption"] for row in rows], side)[dimension] for side in sides)
    return first - second


def test_margins_and_soft_labels_come_back_with_the_pairs(shapes_pairs, tmp_path):
    out = tmp_path / "labelled.parquet"
    result = run("label", shapes_pairs, out, "--scorer", "oracle,oracle:detail", "--labels", "soft", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert f"{COUNT} of {COUNT} pairs written" in result.stdout and "margins: oracle, oracle:detail" in result.stdout
    pairs = everything(open_table(str(out)))
    gap, detail = oracle_gaps(shapes_pairs), oracle_gaps(shapes_pairs, "detail")
    soft = (1 / (1 + np.exp(-PREFERENCE_SCALE * gap)) + 1 / (1 + np.exp(-PREFERENCE_SCALE * detail))) / 2
    np.testing.assert_allclose(pairs.labels(), soft, atol=1e-6)
    np.testing.assert_allclose(pairs.table.columns.gaps["oracle:detail"], detail, atol=1e-6)
    sign = np.where(soft >= 0.5, 1, -1)
    for index in range(COUNT):
        assert pairs[index].margins["oracle"] == pytest.approx(sign[index] * gap[index], abs=1e-6)
    before = pq.read_table(shapes_pairs, columns=["jpg_0", "caption"]).to_pylist()
    assert pq.read_table(out, columns=["jpg_0", "caption"]).to_pylist() == before
    assert len(pq.read_table(tmp_path / "labelled.scores.parquet")) == 4 * COUNT


def test_labels_are_kept_or_hardened_and_margins_accumulate(shapes_pairs, tmp_path):
    label(str(shapes_pairs), [OracleScorer()], tmp_path / "one.parquet")
    result = label(str(tmp_path / "one.parquet"), [OracleScorer("detail")], tmp_path / "two.parquet", labels="hard")
    assert result.margins == ["oracle", "oracle:detail"]
    kept, hard = (everything(open_table(str(tmp_path / name))) for name in ("one.parquet", "two.parquet"))
    assert kept.labels().tolist() == [1.0, 0.0] * (COUNT // 2)
    np.testing.assert_array_equal(hard.labels(), (np.sign(oracle_gaps(shapes_pairs, "detail")) + 1) / 2)


def test_scores_of_an_earlier_attempt_are_used(shapes_pairs, tmp_path, monkeypatch):
    label(str(shapes_pairs), [OracleScorer()], tmp_path / "out.parquet")
    (tmp_path / "out.parquet").unlink()
    monkeypatch.setattr(OracleScorer, "score_prepared", None)
    label(str(shapes_pairs), [OracleScorer()], tmp_path / "out.parquet")
    (tmp_path / "out.parquet").unlink()
    with pytest.raises(RewardModelError, match="exists already"):
        label(str(shapes_pairs), [OracleScorer("detail")], tmp_path / "out.parquet")


def test_a_broken_picture_is_left_out_and_counted(tmp_path):
    columns = shapes_columns(4)
    columns["jpg_1"][2] = columns["jpg_1"][2][:50]
    path = write_parquet(tmp_path / "pairs.parquet", columns)
    result = label(str(path), [OracleScorer()], tmp_path / "out.parquet", labels="soft")
    assert (result.read, result.written) == (4, 3)
    assert result.left_out == {"with a picture that cannot be decoded": 1}
    assert [name for name, _ in result.failures] == ["2/b"] and "2/b: " in result.render()


def test_filters_keep_what_dominates(shapes_pairs, tmp_path):
    columns = shapes_columns(COUNT, margins=[{"mine": -0.2 if i < 2 else 1.0} for i in range(COUNT)])
    path = write_parquet(tmp_path / "pairs.parquet", columns)
    result = run("filter", path, tmp_path / "mpo.parquet", "--scorer", "oracle:detail", "--workers", 0)
    assert result.exit_code == 0, result.output
    kept = [row["ranking_id"] for row in pq.read_table(tmp_path / "mpo.parquet").to_pylist()]
    assert kept == [str(i) for i in range(2, COUNT)] and "left out: 2 that the rule rejects" in result.stdout
    result = run("filter", path, tmp_path / "own.parquet", "--slack", "mine=0.5")
    assert result.exit_code == 0 and f"{COUNT} of {COUNT} pairs" in result.stdout
    for words, message in [
        (["--rule", "mpcf2"], "the rule needs scores of 'aesthetic'"),
        (["--rule", "best"], "unknown rule"),
        (["--slack", "mine=much"], "needs a number"),
        (["--slack", "mine"], "must be written NAME=VALUE"),
    ]:
        result = run("filter", path, tmp_path / "no.parquet", *words)
        assert result.exit_code == 2 and message in result.stderr, result.output
    with pytest.raises(UserError, match="nothing to go by"):
        filter_pairs(str(shapes_pairs), [], tmp_path / "no.parquet")


def test_agreement_with_labels_and_between_scorers(shapes_pairs, tmp_path, head):
    result = run(
        "agree", shapes_pairs, "-o", tmp_path / "a", "--scorer", f"oracle:detail,pickscore={head}", "--workers", 0
    )
    assert result.exit_code == 0, result.output
    assert "| oracle:detail | 1.000" in result.stdout
    numbers = json.loads((tmp_path / "a" / "agreement.json").read_text())
    assert numbers["pairs"] == COUNT and np.array(numbers["between_tau"]).shape == (2, 2)
    assert (tmp_path / "a" / "agreement.md").read_text() == result.stdout
    assert Image.open(tmp_path / "a" / "heat_map.png").width > 100


@pytest.mark.parametrize("words", [["label", "--labels", "softly"], ["label"], ["label", "--scorer", "nobody"]])
def test_bad_words_exit_with_2(shapes_pairs, tmp_path, words):
    result = run(words[0], shapes_pairs, tmp_path / "out.parquet", *words[1:])
    assert result.exit_code == 2 and "Traceback" not in result.stderr and result.stderr.startswith("error: ")


def test_convert_mps_refuses_what_is_no_module(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"something else")
    for source in ("x.pth", "none.pth"):
        result = run("convert-mps", tmp_path / source, tmp_path / "mps")
        assert result.exit_code == 2 and source in result.stderr
