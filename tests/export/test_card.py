"""The model card says what a reader needs, and its code runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from t2i_align.export import export_run, model_card
from tests.backbones.common import load
from tests.export.common import run_config


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter() -> None:
    card = model_card(run_config("owner/model"), "StableDiffusionXLPipeline", {})
    matter = front_matter(card)
    assert card.startswith("---\nbase_model: owner/model\n")
    assert (matter["library_name"], matter["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert (matter["base_model_relation"], matter["license"]) == ("adapter", "other")
    assert {"text-to-image", "dpo", "lora"} <= set(matter["tags"])
    full = front_matter(model_card(run_config("owner/model", model={"train": "full"}), "StableDiffusionPipeline", {}))
    assert full["base_model_relation"] == "finetune"
    assert "lora" not in full["tags"]


def test_objective_convention_data_and_settings() -> None:
    config = run_config(
        "owner/model",
        model={"lora": {"rank": 8, "alpha": 4.0}},
        data={"source": "owner/pairs", "ties": "soft"},
        training={"learning_rate": 2e-5, "ema": {"enabled": True, "decay": 0.99}},
    )
    card = model_card(config, "StableDiffusionXLPipeline", {}, "0123abcd")
    for text in (
        "`sp(-z)`",
        "2311.12908",
        "k = beta/2 on means over all non-batch dimensions",
        "beta = 2000, so k = 1000",
        "| source | `owner/pairs` |",
        "| fingerprint of the pairs | `0123abcd` |",
        "| ties | soft |",
        "| LoRA | rank 8, alpha 4, on to_q, to_k, to_v, to_out.0 |",
        "| learning rate | 2e-05 |",
        "| EMA decay | 0.99 |",
        "| logit | full (beta = 2000.0) |",
        "None were recorded.",
    ):
        assert text in card
    assert "may add conditions" in card


def test_objectives_without_a_logit_scale_do_not_invent_one() -> None:
    card = model_card(
        run_config("owner/model", objective={"preset": "sft", "beta": None}), "StableDiffusionPipeline", {}
    )
    assert "so k =" not in card


def test_metrics_are_rounded_and_text_is_left_out() -> None:
    metrics = {"loss": 0.69314718, "rewards/accuracies": 0.5, "step": 7, "note": "text", "time": None}
    card = model_card(run_config("owner/model"), "StableDiffusionXLPipeline", metrics)
    assert re.findall(r"\| (loss|rewards/accuracies|step|note|time) \| (\S+) \|", card) == [
        ("loss", "0.693147"),
        ("rewards/accuracies", "0.5"),
        ("step", "7"),
    ]


def test_tables_are_well_formed() -> None:
    card = model_card(run_config("owner/model"), "StableDiffusionXLPipeline", {"loss": 0.5, "d_w": -1e-5})
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") and line.count("|") == 3 for line in rows)
    for heading in re.findall(r"\n(#+ .*)", card):
        assert f"\n\n{heading}\n\n" in card


@pytest.mark.parametrize(("layout", "train"), [("tiny_sdxl", "lora"), ("tiny_sd", "full")])
def test_the_code_of_the_card_runs(
    layout: str, train: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, model = request.getfixturevalue(layout), {"train": train}
    folder = export_run(load(base, **model), tmp_path / "out", run_config(base, model=model), {"loss": 0.5})
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(folder)
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["pipe"].unet.config.cross_attention_dim
    assert bool(getattr(namespace["pipe"].unet, "peft_config", {})) is (train == "lora")


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_code_of_the_card_runs_on_sdxl_as_published(
    train: str, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text encoders state float16, which transformers follows, and a float32 UNet crashes. One variant, too."""
    base = Path(shutil.copytree(tiny_sdxl, tmp_path / "base"))
    for name in ("text_encoder", "text_encoder_2"):
        file = base / name / "config.json"
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "dtype"}
        file.write_text(json.dumps({**config, "torch_dtype": "float16"}))
    for path in base.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    model = {"train": train}
    folder = export_run(load(base, **model), tmp_path / "out", run_config(base, model=model), {"loss": 0.5})
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["variant"] == "fp16"
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(folder)
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    namespace["pipe"].set_progress_bar_config(disable=True)
    assert namespace["pipe"]("a star", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_code_for_the_built_in_base_and_for_variants() -> None:
    built_in = model_card(run_config("shapes:base"), "StableDiffusionXLPipeline", {})
    assert "from_pretrained(resolve('shapes:base'), dtype=dtype)" in built_in
    assert "from t2i_align.shapes.assets import resolve" in built_in
    variant = model_card(run_config("owner/model", model={"variant": "fp16"}), "StableDiffusionXLPipeline", {})
    assert "from_pretrained('owner/model', variant='fp16', dtype=dtype)" in variant
