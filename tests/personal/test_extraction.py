"""User embeddings from a vision-language model: what is shown, what is kept, and that nobody trains on it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from typer.testing import CliRunner

from t2i_align.backbones import load_backbone
from t2i_align.cli import app
from t2i_align.config.loading import config_from_values
from t2i_align.data.pictures import decode
from t2i_align.errors import UserError
from t2i_align.objectives import resolve
from t2i_align.personal.build import build_personal
from t2i_align.personal.external import read_origin
from t2i_align.personal.extraction import Recipe, extract
from t2i_align.personal.files import read_personal
from t2i_align.personal.pipeline import Personal
from t2i_align.personal.support import choose
from t2i_align.personal.vision_language import Choice, Reading, VisionLanguageModel, conversation
from t2i_align.personal.who import everything_of, tokens_of
from tests.training.runs import picture, write_pairs

from .test_training import run, settings
from .tiny_vlm import LAYERS, WIDTH, write_vlm

RECIPE = Recipe("none", shots=2)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet", count=24)


class Brightness:
    """Stands for a model: what it makes of a user is how bright the shown pictures are; may break off."""

    def __init__(self, breaks_after: int | None = None, value: float = 1.0) -> None:
        self.users, self._breaks_after, self._value = 0, breaks_after, value

    def read(self, choices: list[Choice], max_new_tokens: int) -> Reading:
        if self.users == self._breaks_after:
            raise KeyboardInterrupt
        self.users += 1
        light = [sum(image.convert("L").tobytes()) for choice in choices for image in (choice.winner, choice.loser)]
        states = self._value * torch.tensor([light], dtype=torch.float32)
        return Reading(states, "User profile: ...", finished=max_new_tokens > 4)


def test_a_vision_language_model_embeds_users_and_a_run_reads_them(vlm, pairs, tiny_sd, tmp_path):
    file = tmp_path / "users.safetensors"
    words = [str(pairs), "--model", str(vlm), "-o", str(file), "--shots", "2", "--max-new-tokens", "3"]
    result = CliRunner().invoke(app, ["personal", "extract", *words])
    assert result.exit_code == 0, result.output
    assert f"3 users, {LAYERS + 1} x {WIDTH}" in result.output and "3 answers were cut off" in result.output
    arrays, origin = load_file(file), read_origin(file)
    assert sorted(arrays) == ["0", "1", "2"] and not torch.equal(arrays["0"], arrays["1"])
    told = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in told] == ["0", "1", "2"] and all(len(row["shown"]) == 2 for row in told)
    assert {row["user_id"]: frozenset(row["shown"]) for row in told} == origin.shown

    external = {"encoder": "external", "token_width": 8, "users_file": str(file)}
    trained = run(tiny_sd, pairs, tmp_path / "run", external, training={"max_train_steps": 1})
    saved = read_personal(trained / "export")
    assert tokens_of(Personal(None, saved.adapter, saved.users), f"{file}#1").shape == (LAYERS + 1, 8)
    assert CliRunner().invoke(app, ["personal", "extract", *words]).exit_code == 2  # the file is there


def test_the_array_is_the_last_state_of_every_layer_and_depends_on_who_won(vlm):
    reader = VisionLanguageModel(str(vlm), "cpu", "bf16")
    images = [Choice("a fox", *(decode(picture(seed)) for seed in (2 * n, 2 * n + 1))) for n in range(2)]
    turned = [Choice(choice.caption, choice.loser, choice.winner) for choice in images]
    readings = [reader.read(choices, 4) for choices in (images, images, turned)]
    assert readings[0].states.shape == (LAYERS + 1, WIDTH) and readings[0].states.dtype == torch.bfloat16
    assert torch.equal(readings[0].states, readings[1].states)
    assert not torch.equal(readings[0].states, readings[2].states)
    content = conversation(images)[0]["content"]
    shown = [part["image"] for part in content if part["type"] == "image"]
    assert shown == [images[0].winner, images[0].loser, images[1].winner, images[1].loser]
    told = [part["text"] for part in content if part["type"] == "text"]
    assert told[1] == 'Pair 1, caption "a fox". Picture 1, preferred:' and told[2] == "Picture 2, not preferred:"
    assert told[4] == "Picture 4, not preferred:" and "Pair 2: preferred" in told[-1]


def test_a_stopped_extraction_goes_on(pairs, tmp_path):
    whole = extract(str(pairs), None, RECIPE, tmp_path / "whole.safetensors", Brightness())
    with pytest.raises(KeyboardInterrupt):
        extract(str(pairs), None, RECIPE, tmp_path / "cut.safetensors", Brightness(breaks_after=1))
    with pytest.raises(UserError, match="other settings"):
        extract(str(pairs), None, Recipe("none", shots=3), tmp_path / "cut.safetensors", Brightness())
    rest = Brightness()
    cut = extract(str(pairs), None, RECIPE, tmp_path / "cut.safetensors", rest)
    assert rest.users == 2 and cut.users == whole.users == 3
    first, second = load_file(whole.path), load_file(cut.path)
    assert all(torch.equal(first[user], second[user]) for user in first)
    assert not (tmp_path / "cut.parts").exists()
    assert whole.unfinished == [] and load_file(whole.path)["0"].shape == whole.shape


def test_shown_pairs_are_never_trained_on(pairs, tiny_sd, tmp_path):
    rows = pq.read_table(pairs).to_pylist()
    rows.append({**rows[0], "ranking_id": 99, "user_id": 7})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    made = extract(str(tmp_path / "pairs.parquet"), None, RECIPE, tmp_path / "users.safetensors", Brightness())
    assert made.left_out == ["7"]
    external = {"encoder": "external", "token_width": 8, "users_file": str(made.path)}
    config = config_from_values(settings(tiny_sd, tmp_path / "pairs.parquet", tmp_path / "run", external), "test")
    backbone = load_backbone(config.model, "cpu", torch.float32)
    parts = build_personal(config, config.personal, backbone, resolve(config.objective), Accelerator(cpu=True))
    ids, shown = parts.provider.source.pair_ids(), read_origin(made.path).shown
    assert {user: len(rows) for user, rows in parts.provider.training_pairs.items()} == {"0": 6, "1": 6, "2": 6}
    for user, mine in parts.provider.training_pairs.items():
        assert not {ids[row] for row in mine} & shown[user]


def test_what_is_shown_of_a_user(tmp_path):
    rows = pq.read_table(write_pairs(tmp_path / "pairs.parquet", count=6)).to_pylist()
    for row in rows:
        row["user_id"] = 5
    swapped = {"jpg_0": rows[0]["jpg_1"], "jpg_1": rows[0]["jpg_0"]}
    rows.append({**rows[0], **swapped, "ranking_id": 10, "label_0": 1.0, "label_1": 0.0})  # says the same as row 0
    rows.append({**rows[1], "ranking_id": 11, "label_0": 0.0, "label_1": 1.0})  # takes row 1 back
    rows.append({**rows[2], "ranking_id": 12, "label_0": 0.5, "label_1": 0.5})
    for number in (3, 4, 5):
        rows[number]["caption"] = rows[3]["caption"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    source = everything_of(str(tmp_path / "pairs.parquet"))
    decided = [row for row in range(len(source)) if source.labels()[row] != 0.5]
    shown = {}
    for seed in range(8):
        support = choose(source, "5", decided, 3, seed)
        assert support is not None and 1 not in support.rows and len({source.captions()[r] for r in support.rows}) == 3
        assert ("10" in support.seen) == ("0" in support.seen) == (0 in support.rows)
        shown |= dict(zip(support.rows, support.first_wins, strict=True))
    assert shown[0] is False and shown[2] is False and (3 not in shown or shown[3] is True)
    assert choose(source, "5", decided, 6, 0) is None


def test_clear_messages(vlm, pairs, tiny_sd, tmp_path):
    with pytest.raises(UserError, match="no vision-language model"):
        VisionLanguageModel(str(tiny_sd), "cpu", "fp32")
    with pytest.raises(UserError, match="no chat template"):
        VisionLanguageModel(str(write_vlm(tmp_path / "mute", chat=False)), "cpu", "fp32")
    for address, user, recipe, output, message in (
        (pairs, "nobody", RECIPE, "a.safetensors", "gave no answer"),
        (pairs, None, Recipe("none", shots=9), "a.safetensors", "No user has enough"),
        (pairs, None, RECIPE, "a.npz", "safetensors file"),
    ):
        with pytest.raises(UserError, match=message):
            extract(str(address), user, recipe, tmp_path / output, Brightness())
    with pytest.raises(UserError, match="overflow"):
        extract(str(pairs), "1", RECIPE, tmp_path / "inf.safetensors", Brightness(value=float("inf")))
    short = Recipe("none", shots=2, max_new_tokens=2)
    one = extract(str(pairs), "1", short, tmp_path / "one.safetensors", Brightness())
    assert one.users == 1 and one.unfinished == ["1"]
