"""A user in one word, and pictures of several models for several users."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.errors import UserError
from t2i_align.evaluation.generate import run
from t2i_align.evaluation.users import UserChoice
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.features import PixelFeatures, open_extractor
from t2i_align.personal.files import read_personal, save_personal
from t2i_align.personal.pipeline import Personal
from t2i_align.personal.who import answers_of, split_terms, split_user, tokens_of
from tests.training.runs import write_pairs

from .common import TABLE, add_adapter, open_up

PIXELS = PixelFeatures()
OF_PAIRS = PersonalConfig(
    "pair_set", 3, 8, hidden=16, features=PIXELS.width, caption_features=PIXELS.caption_width, extractor="pixels"
)


@pytest.fixture(scope="module")
def adapters(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters that look trained."""
    folder = tmp_path_factory.mktemp("adapters")
    rewards = PersonalConfig("reward_vector", 3, 8, names=("clip", "aesthetic"))
    made = {}
    for name, config in {"table": TABLE, "pair_set": OF_PAIRS, "reward_vector": rewards}.items():
        adapter = add_adapter(tiny_sd, config)
        open_up(adapter)
        made[name] = save_personal(adapter, folder / name)
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "answers.parquet", count=12)


def opened(folder: Path) -> Personal:
    saved = read_personal(folder)
    return Personal(None, saved.adapter, saved.users)


def test_names_and_mixtures(adapters: dict[str, Path]) -> None:
    personal = opened(adapters["table"])
    anna, ben = personal.tokens("anna"), personal.tokens("ben")
    assert torch.equal(tokens_of(personal, "anna"), anna)
    assert torch.allclose(tokens_of(personal, "0.7*anna + 0.3*ben"), 0.7 * anna + 0.3 * ben)
    assert torch.allclose(tokens_of(personal, "2*anna+-1*ben"), 2 * anna - ben)
    assert not tokens_of(personal, "null").any()
    assert split_terms("a+0.5*b") == [(1.0, "a"), (0.5, "b")]
    for word, message in (("clara", "Unknown user"), ("0.5*", "Unknown user"), ("anna+", "missing"), ("x=1", "reward")):
        with pytest.raises(UserError, match=message):
            tokens_of(personal, word)


def test_answers_of_one_user(adapters: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    personal = opened(adapters["pair_set"])
    first, second = tokens_of(personal, f"{pairs}#0"), tokens_of(personal, f"{pairs}#1")
    assert first.shape == (3, 8) and not torch.allclose(first, second)
    half = tokens_of(personal, f"0.5*{pairs}#0+0.5*{pairs}#1")
    assert torch.allclose(half, (first + second) / 2, atol=1e-6)
    source = answers_of(str(pairs), "0")
    assert len(source) == 4 and set(source.users()) == {"0"}
    for word, message in ((str(pairs), "Whose answers"), (f"{pairs}#9", "gave no answer")):
        with pytest.raises(UserError, match=message):
            tokens_of(personal, word)
    with pytest.raises(UserError, match="does not encode comparisons"):
        tokens_of(opened(adapters["table"]), f"{pairs}#0")
    save_file({"anna": first}, tmp_path / "fitted.safetensors")
    assert torch.equal(tokens_of(personal, str(tmp_path / "fitted.safetensors")), first)
    with pytest.raises(UserError, match="Unknown user"):
        tokens_of(personal, f"{tmp_path / 'fitted.safetensors'}#ben")


def test_an_unknown_id_is_answered_with_the_nearest_of_all(tmp_path: Path) -> None:
    table = pq.read_table(write_pairs(tmp_path / "few.parquet", count=30))
    users = [str(7000 + 13 * index) for index in range(30)]  # 7000, 7013, ..., 7377
    column = table.schema.get_field_index("user_id")
    many = tmp_path / "many.parquet"
    pq.write_table(table.set_column(column, "user_id", pa.array(users)), many)
    with pytest.raises(UserError, match=r"did you mean 7364 or .*\(30 are known\)"):
        answers_of(str(many), "7365")
    with pytest.raises(UserError, match="nothing like it is among the 30 known: 7000, 7013, 7026, ..."):
        answers_of(str(many), "anna")


def test_reward_weights(adapters: dict[str, Path]) -> None:
    personal = opened(adapters["reward_vector"])
    both = tokens_of(personal, "clip=0.5,aesthetic=0.5")
    assert torch.allclose(both, tokens_of(personal, "0.5*clip=1+0.5*aesthetic=1"), atol=1e-6)
    with pytest.raises(UserError, match="is a number"):
        tokens_of(personal, "clip=much")
    with pytest.raises(UserError, match="Unknown reward"):
        tokens_of(personal, "beauty=1")


def picture(folder: Path) -> Image.Image:
    return Image.open(folder / "images" / "00000.png").convert("RGB")


def same(first: Path, second: Path) -> bool:
    return ImageChops.difference(picture(first), picture(second)).getbbox() is None


def test_models_make_pictures_for_their_users(tiny_sd: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    table = adapters["table"]
    models = {"base": tiny_sd, "nobody": table, "off": table, "anna": table, "ben": table}
    sampling = {"num_inference_steps": 1, "height": 32, "width": 32, "base": tiny_sd, "show_progress": False}
    who = {"nobody": "null", "off": "0*anna", "anna": "anna", "ben": "ben"}
    made = run(models, ["a fox"], tmp_path, users=UserChoice(who), **sampling)
    assert same(made["base"], made["nobody"]) and same(made["base"], made["off"])
    assert not same(made["base"], made["anna"]) and not same(made["anna"], made["ben"])
    scaled = run({"anna": table}, ["a fox"], tmp_path / "0", users=UserChoice({"anna": "anna"}, scale=0.0), **sampling)
    assert same(scaled["anna"], made["base"])
    with pytest.raises(UserError, match="other settings"):  # pictures for another user are other pictures
        run(models, ["a fox"], tmp_path, users=UserChoice({**who, "anna": "ben"}), **sampling)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (UserChoice(), "say for whom"),
        (UserChoice({"tuned": "anna", "base": "anna"}), "knows no users"),
        (UserChoice({"tuned": "anna", "other": "anna"}), "not compared"),
        (UserChoice({}, scale=2.0), "need a --user"),
        (UserChoice({"tuned": "clara"}), "Unknown user"),
    ],
)
def test_mistakes_are_found_before_the_first_picture(choice, message, tiny_sd, adapters, tmp_path) -> None:
    with pytest.raises(UserError, match=message):
        run({"base": tiny_sd, "tuned": adapters["table"]}, ["a fox"], tmp_path / "out", users=choice, base=tiny_sd)
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_users(tiny_sd: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\n")
    words = ["generate", f"a={adapters['reward_vector']}", "--user", "clip=0.7,aesthetic=0.3", "--base", str(tiny_sd)]
    words += ["--prompts", str(tmp_path / "prompts.txt"), "--num-inference-steps", "1", "--height", "32"]
    result = CliRunner().invoke(app, [*words, "--width", "32", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/a/images/00000.png").is_file()


def test_pixel_features_see_colour_and_brightness() -> None:
    colours = [(200, 30, 30), (30, 30, 200), (210, 40, 30)]
    red, blue, other = PIXELS.pictures([Image.new("RGB", (20, 30), colour) for colour in colours])
    assert red.shape == (PIXELS.width,) and red @ other > red @ blue
    words = PIXELS.captions(["a red fox", "Fox, a RED", "a blue cat"])
    assert torch.allclose(words[0], words[1]) and not torch.allclose(words[0], words[2])
    with pytest.raises(UserError, match="personal.features"):
        open_extractor("no/such/folder/anywhere")


def test_clip_features_are_unit_vectors_that_tell_pictures_and_words_apart() -> None:
    clip = open_extractor("shapes:pickscore")
    pictures = clip.pictures([Image.new("RGB", (20, 30), colour) for colour in ((200, 30, 30), (30, 30, 200))])
    words = clip.captions(["a red circle", "a blue circle", "a red circle"])
    assert pictures.shape == (2, clip.width) and words.shape == (3, clip.caption_width)
    for rows in (pictures, words):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)
        assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    assert torch.allclose(words[0], words[2]) and clip.fingerprint == open_extractor("shapes:pickscore").fingerprint


def test_an_address_may_hold_the_mark_of_a_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs #1").mkdir()
    assert split_user("pairs #1") == ("pairs #1", None)
    assert split_user("pairs #1#anna") == ("pairs #1", "anna")
    assert split_user("pairs.parquet#USER #2") == ("pairs.parquet", "USER #2")
    assert split_user("anna") == ("anna", None)
    assert split_terms("pairs #1#anna+ben") == [(1.0, "pairs #1#anna+ben")]  # users of a path may hold a +
