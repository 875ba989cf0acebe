"""Personal reward heads from pair files, new users, and the strip between two of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.errors import UserError
from t2i_align.personal import table_user
from t2i_align.personal.files import read_personal, save_personal
from t2i_align.personal.new_user import fit, save_tokens
from t2i_align.rewards.personal import read_features
from t2i_align.shapes.pairs import encode_jpeg

from .common import add_adapter, open_up
from .test_training import run
from .test_who import OF_PAIRS

COLOURS = [(220, 30, 30), (30, 30, 220), (30, 180, 40), (240, 220, 30), (60, 60, 60), (230, 230, 230)]


def write_tastes(path: Path, users: range, per_user: int, seed: int) -> Path:
    """Plain pictures, of which every user likes some colours more; prompts are shared by few pairs."""
    rng, rows = np.random.default_rng(seed), []
    for user in users:
        liking = np.random.default_rng([9, user]).standard_normal(len(COLOURS))
        for number in range(per_user):
            first, second = rng.permutation(len(COLOURS))[:2]
            shades = [tuple(np.add(COLOURS[c], rng.integers(-9, 10, 3)).tolist()) for c in (first, second)]
            jpegs = [encode_jpeg(Image.new("RGB", (16, 16), shade)) for shade in shades]  # no picture comes twice
            label = float(liking[first] > liking[second])
            rows.append((len(rows) + 1000 * seed, user, f"thing {seed} {number // 2}", *jpegs, label, 1 - label, True))
    names = ("ranking_id", "user_id", "caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tastes")
    write_tastes(folder / "train.parquet", range(12), 20, seed=1)
    write_tastes(folder / "new.parquet", range(100, 116), 24, seed=2)
    return folder


def invoke(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def head(data: Path) -> Path:
    (data / "head.yaml").write_text(
        f"scorer: personal\noutput_dir: {data / 'head'}\nfeatures: pixels\n"
        f"data: {{source: {data / 'train.parquet'}, heldout_source: {data / 'new.parquet'}}}\n"
        "few_shot: {shots: [0, 2, 8]}\n",
        encoding="utf-8",
    )
    output = invoke("rewards", "train", data / "head.yaml")
    assert "gain over pooled" in output and "Head:" in output
    return data / "head"


def test_a_head_learns_new_users_from_a_few_pairs(head: Path, data: Path, tmp_path: Path) -> None:
    curve = json.loads((head / "few_shot.json").read_text())
    accuracy = [point["value"] for point in curve["accuracy"]]
    assert curve["users"] == 16 and accuracy[2] > accuracy[0] + 0.1 and accuracy[2] > curve["pooled"]["value"] + 0.1
    assert curve["certainty"][0] == 0 < curve["certainty"][1] < curve["certainty"][2] < 1
    assert (head / "few_shot.png").is_file() and (head / "pooled/config.json").is_file()
    for words, message in (
        ([data / "head.yaml"], "not empty"),
        ([data / "head.yaml", f"output_dir={tmp_path / 'a'}", "head.prototypes=3"], "does not read prototypes"),
        ([data / "head.yaml", f"output_dir={tmp_path / 'b'}", "few_shot.heldout_users=0.5"], "keep one"),
        ([data / "head.yaml", f"output_dir={tmp_path / 'c'}", "few_shot.shots=[40]"], "enough decided pairs"),
    ):
        result = CliRunner().invoke(app, ["rewards", "train", *map(str, words)])
        assert result.exit_code == 2 and message in result.output


def test_users_of_one_file_are_split_and_points_may_be_ideal_on_clip_features(data: Path, tmp_path: Path) -> None:
    words = [f"output_dir={tmp_path / 'head'}", "data.heldout_source=null", "few_shot.heldout_users=0.25"]
    words += ["features=shapes:pickscore"]
    output = invoke("rewards", "train", data / "head.yaml", *words, "head={kind: ideal_points, steps: 20}")
    assert "3 users" in output
    trained = json.loads((tmp_path / "head/model/config.json").read_text())
    assert trained["kind"] == "ideal_points" and len(trained["users"]) == 9
    assert read_features(tmp_path / "head").name == "shapes:pickscore"
    assert "100: 2 answers" in invoke("personal", "fit", tmp_path / "head", f"{data / 'new.parquet'}#100", "--first", 2)


def test_fit_says_what_is_known_and_what_to_ask(head: Path, data: Path, tmp_path: Path) -> None:
    output = invoke("personal", "fit", head, f"{data / 'new.parquet'}#101", "--first", 4)
    assert "101: 4 answers, certainty" in output and "Ask next: pair" in output and "nats" in output
    few, many = (fit(head, f"{data / 'new.parquet'}#101", first=count) for count in (1, 16))
    assert many.posterior.certainty > few.posterior.certainty and few.question is not None
    told = pq.read_table(data / "new.parquet").to_pylist()
    shown = {frozenset((row["jpg_0"], row["jpg_1"])) for row in [r for r in told if r["user_id"] == 101][:1]}
    asked = next(row for row in told if str(row["ranking_id"]) == few.question.pair_id)
    assert frozenset((asked["jpg_0"], asked["jpg_1"])) not in shown


def test_odd_answers_widen_the_confidence_or_are_explained(head: Path, data: Path, tmp_path: Path) -> None:
    rows = [row for row in pq.read_table(data / "new.parquet").to_pylist() if row["user_id"] == 100]
    flipped = [
        {**row, "ranking_id": -1 - i, "label_0": row["label_1"], "label_1": row["label_0"]}
        for i, row in enumerate(rows[:1])
    ]
    repeated = [{**rows[0], "ranking_id": -10 - i} for i in range(5)]
    for name, kept in {"one": rows[:1], "repeated": repeated, "contradicted": [rows[0], *flipped]}.items():
        pq.write_table(pa.Table.from_pylist(kept), tmp_path / f"{name}.parquet")
    found = {
        name: fit(head, f"{tmp_path / name}.parquet", candidates=str(data / "new.parquet")).posterior
        for name in ("one", "repeated", "contradicted")
    }
    assert found["repeated"].certainty == pytest.approx(found["one"].certainty) and found["repeated"].notes
    assert found["contradicted"].certainty == 0 and found["contradicted"].notes
    with pytest.raises(UserError, match="gave no answer"):
        fit(head, f"{data / 'new.parquet'}#nobody")
    with pytest.raises(UserError, match="not the run folder"):
        fit(tmp_path, f"{data / 'new.parquet'}#100")


def test_tokens_and_a_strip_for_a_new_user(head: Path, data: Path, tiny_sd: Path, tmp_path: Path) -> None:
    adapter = add_adapter(tiny_sd, OF_PAIRS)
    open_up(adapter)
    saved = save_personal(adapter, tmp_path / "run")
    (saved / "config.yaml").write_text(json.dumps({"model": {"pretrained_model_name_or_path": str(tiny_sd)}}))
    answers, tokens = f"{data / 'new.parquet'}#102", tmp_path / "user.safetensors"
    invoke("personal", "fit", head, answers, "--adapter", saved, "-o", tokens, "--name", "clara")
    assert load_file(tokens)["clara"].shape == (3, 8)
    size = ["--num-inference-steps", 1, "--height", 32, "--width", 32, "--users", 3]
    invoke("personal", "interpolate", saved, "null", tokens, "--prompt", "a fox", "-o", tmp_path / "strip.png", *size)
    assert Image.open(tmp_path / "strip.png").width >= 3 * 32
    result = CliRunner().invoke(app, ["personal", "fit", str(head), answers, "--adapter", str(saved)])
    assert result.exit_code == 2 and "belong together" in result.output
    with pytest.raises(UserError, match="no user adapter"):
        from t2i_align.evaluation.strip import strip

        strip(str(tiny_sd), "null", "null", ["a fox"], tmp_path / "none.png")


def test_a_new_user_of_a_table_is_a_combination_of_its_users(head, data, tiny_sd, tmp_path, monkeypatch) -> None:
    table = {"encoder": "table", "num_tokens": 2, "token_width": 8}
    run(tiny_sd, data / "train.parquet", tmp_path / "run", table, training={"max_train_steps": 2})
    monkeypatch.setattr(table_user, "STEPS", 4)
    answers = f"{data / 'new.parquet'}#102"
    words = ["personal", "fit", head, answers, "--first", 3, "--adapter", tmp_path / "run", "-o"]
    for name in ("one", "two"):
        invoke(*words, tmp_path / f"{name}.safetensors")
    found, again = (load_file(tmp_path / f"{name}.safetensors")["user"] for name in ("one", "two"))
    adapter = read_personal(tmp_path / "run/export").adapter
    known = adapter.encoder.get_parameter("table").detach()
    assert torch.equal(found, again) and not torch.allclose(found, known.mean(0), atol=1e-3)
    coefficients = torch.linalg.lstsq(known.flatten(1).T, found.flatten()[:, None]).solution
    assert torch.allclose(coefficients[:, 0] @ known.flatten(1), found.flatten(), atol=1e-4)
    rows = [row for row in pq.read_table(data / "new.parquet").to_pylist() if row["user_id"] == 102][:1]
    rows.append({**rows[0], "ranking_id": -1, "label_0": rows[0]["label_1"], "label_1": rows[0]["label_0"]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "torn.parquet")
    with pytest.raises(UserError, match="cancel each other"):
        save_tokens(str(tmp_path / "run"), str(tmp_path / "torn.parquet"), None, "torn", tmp_path / "torn.safetensors")
