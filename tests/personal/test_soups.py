"""Weighted merging of LoRAs, single-reward pairs, and the plot of trade-offs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.testing import CliRunner

from t2i_align.backbones import load_for_sampling
from t2i_align.cli import app
from t2i_align.data.sources import open_table
from t2i_align.errors import UserError
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.files import save_personal
from t2i_align.personal.soups import merge_loras
from t2i_align.shapes.pairs import SCHEMA
from t2i_align.shapes.reward_pairs import run as reward_pairs
from t2i_align.shapes.soup_study import Point, area, mark_dominated
from t2i_align.shapes.soup_study import run as soup_study
from t2i_align.shapes.user_pairs import answers
from t2i_align.shapes.users import make_user
from tests.shapes.test_user_pairs import shown
from tests.training.runs import run_config, write_pairs

from .common import add_adapter, open_up

TARGETS = {"a": ["to_q", "to_v"], "b": ["to_v", "to_out.0"]}
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def loras(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs with LoRAs of different ranks, scales and layers."""
    from t2i_align.training.run import train

    folder = tmp_path_factory.mktemp("loras")
    pairs = write_pairs(folder / "train.parquet", count=8)
    for number, (name, targets) in enumerate(TARGETS.items()):
        lora = {"rank": 2 + 2 * number, "alpha": 4.0, "target_modules": targets}
        model = {"pretrained_model_name_or_path": str(tiny_sd), "lora": lora}
        training = {"max_train_steps": 2, "learning_rate": 0.05}
        train(run_config(tiny_sd, pairs, folder / name, model=model, training=training, seed=number))
    return {name: folder / name for name in TARGETS}


def weight(model: Path, layer: str) -> torch.Tensor:
    """A layer with its LoRA merged in."""
    pipeline = load_for_sampling(str(model), None, torch.float32, "cpu")
    if getattr(pipeline.unet, "peft_config", None):
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline.unet.get_submodule(layer).weight.detach()


def test_a_soup_is_the_weighted_sum_of_what_was_learnt(tiny_sd, loras, tmp_path) -> None:
    words = [f"{loras['a']}=0.3", f"{loras['b']}=0.7"]
    result = CliRunner().invoke(app, ["personal", "soup", *words, "-o", str(tmp_path / "soup")])
    assert result.exit_code == 0, result.output
    for part in ("to_q", "to_v", "to_out.0"):  # of the first alone, of both, of the second alone
        base, a, b, soup = (weight(m, f"{LAYER}.{part}") for m in (tiny_sd, *loras.values(), tmp_path / "soup"))
        assert torch.allclose(soup - base, 0.3 * (a - base) + 0.7 * (b - base), atol=1e-6)
        assert (soup - base).abs().max() > 1e-5
    assert yaml.safe_load((tmp_path / "soup/config.yaml").read_text())["soup"][str(loras["a"])] == 0.3


def test_what_cannot_be_merged(tiny_sd, tiny_sdxl, loras, tmp_path) -> None:
    for models, message in (
        ({str(loras["a"]): 1.0}, "two LoRAs"),
        ({str(loras["a"]): 0.5, str(tiny_sdxl): 0.5}, "Only LoRAs"),
    ):
        with pytest.raises(UserError, match=message):
            merge_loras(models, tmp_path / "soup")
    result = CliRunner().invoke(app, ["personal", "soup", f"{loras['a']}=much", "-o", str(tmp_path / "soup")])
    assert result.exit_code == 2 and "with its weight" in result.output


def test_pairs_of_single_rewards(tmp_path) -> None:
    (tmp_path / "pairs").mkdir()
    rows = answers(shown(), [make_user(0), make_user(1)], per_user=12, seed=0)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "pairs/train.parquet")
    bright, blue = reward_pairs(tmp_path, ["brightness", "colour=blue"])
    table = open_table(str(blue))
    assert len(table) == len({row["image_0_uid"] for row in rows}) and set(table.columns.gaps) == {
        "brightness",
        "colour=blue",
    }
    assert (table.columns.labels == 0).all() and (table.columns.gaps["colour=blue"] < 0).all()  # picture 1 is blue
    labels, gaps = open_table(str(bright)).columns.labels, open_table(str(bright)).columns.gaps["brightness"]
    decided = labels != 0.5
    assert decided.any() and ((labels > 0.5) == (gaps > 0))[decided].all()
    with pytest.raises(UserError, match="Unknown reward"):
        reward_pairs(tmp_path, ["smell"])
    with pytest.raises(UserError, match="no users' pairs"):
        reward_pairs(tmp_path / "none", ["brightness"])


def test_dominated_points_are_those_beaten_in_both() -> None:
    points = {"x": [Point(0, 1.0, 0.0), Point(1, 0.5, 0.5)], "y": [Point(0, 0.5, 0.4), Point(1, 0.0, 1.0)]}
    marked = mark_dominated(points)
    assert [[point["dominated"] for point in of] for of in marked.values()] == [[False, False], [True, False]]


def test_the_area_over_the_base_by_hand() -> None:
    points = np.array([[1.0, 0.25], [0.5, 0.5], [0.4, 0.4], [-1.0, 2.0]])  # the third is dominated, the fourth no gain
    assert area(points, np.zeros(2)) == pytest.approx(1.0 * 0.25 + 0.5 * 0.25)
    assert area(points - 5, np.zeros(2)) == 0


def test_soups_and_reward_weights_on_one_plot(tiny_sd, loras, tmp_path) -> None:
    adapter = add_adapter(tiny_sd, PersonalConfig("reward_vector", 2, 8, names=("brightness", "colour=blue")))
    open_up(adapter)
    vector = save_personal(adapter, tmp_path / "vector")
    (vector / "config.yaml").write_text(json.dumps({"model": {"pretrained_model_name_or_path": str(tiny_sd)}}))
    runs = {"brightness": str(loras["a"]), "colour=blue": str(loras["b"])}
    result = soup_study(runs, str(vector), ["a fox"], tmp_path / "study", steps=2, num_inference_steps=1)
    assert {method: len(points) for method, points in result["points"].items()} == {
        "base": 1,
        "soup": 2,
        "reward_vector": 2,
    }
    base, soup = result["points"]["base"][0], result["points"]["soup"][0]
    assert base["first_gain"] == (0.0, 0.0) and soup["first_gain"][0] <= soup["first"] - base["first"] + 1e-9
    assert set(result["area"]) == {"soup", "reward_vector"}
    assert (tmp_path / "study/pareto.png").is_file() and (tmp_path / "study/pareto.json").is_file()
    with pytest.raises(UserError, match="two rewards"):
        soup_study({"brightness": str(loras["a"])}, str(vector), ["a fox"], tmp_path / "study")
