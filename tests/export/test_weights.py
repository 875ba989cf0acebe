"""Exports reproduce the policy in a fresh process that has only diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i_align.backbones import Backbone, load_backbone, trainable_state
from t2i_align.errors import UserError
from t2i_align.export import export_run
from tests.backbones.common import inputs, load, perturb
from tests.export.common import run_config

LORA = "pytorch_lora_weights.safetensors"
KOHYA = "kohya_lora_weights.safetensors"
EVERYWHERE = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "ff.net.2", "conv1", "time_emb_proj"]
CASES: dict[str, tuple[str, dict, dict]] = {
    "sdxl everywhere": (
        "tiny_sdxl",
        {"lora": {"rank": 4, "alpha": 2.5, "target_modules": EVERYWHERE}},
        {"kohya": True},
    ),
    "sdxl dora": ("tiny_sdxl", {"lora": {"rank": 4, "alpha": 6.0, "use_dora": True}}, {}),
    "sd v alpha": ("tiny_sd_v", {"lora": {"rank": 4, "alpha": 1.0}}, {"kohya": True}),
    "sd dora": ("tiny_sd", {"lora": {"rank": 4, "use_dora": True, "target_modules": ["to_q", "conv2"]}}, {}),
    "sdxl full": ("tiny_sdxl", {"train": "full"}, {}),
}
FILES = [(name, LORA) for name in CASES if "full" not in name]
FILES += [(name, KOHYA) for name, (_, _, export) in CASES.items() if export]
FILES += [(name, "unet") for name in CASES if "full" in name]


@dataclass
class Expected:
    """What the trained policy computes."""

    prediction: Tensor
    picture: Tensor
    start: Tensor


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[Expected, dict[str, Tensor]]]:
    """(case, file) -> (the policy's own results, those of the fresh process)."""
    root = tmp_path_factory.mktemp("exports")
    jobs, expected = [], {}
    for number, (name, (layout, model, export)) in enumerate(CASES.items()):
        base = request.getfixturevalue(layout)
        backbone = load(base, **model)
        given = inputs(backbone)
        start = backbone.predict(**given).detach()
        perturb(backbone)
        expected[name] = Expected(backbone.predict(**given).detach(), _picture(backbone), start)
        folder = export_run(backbone, root / str(number), run_config(base, model=model, export=export), {})
        _save_inputs(given, root / f"{number}.inputs")
        for case, file in FILES:
            if case == name:
                job = {"base": str(base), "inputs": str(root / f"{number}.inputs")}
                kind = "unet" if file == "unet" else "lora"
                jobs.append({**job, kind: str(folder / file), "output": str(root / f"{name} {file}")})
    (root / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("plain_diffusers.py")
    run = subprocess.run([sys.executable, script, root / "jobs.json"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return {(name, file): (expected[name], load_file(root / f"{name} {file}")) for name, file in FILES}


def _picture(backbone: Backbone) -> Tensor:
    pipe = backbone.pipeline()
    pipe.set_progress_bar_config(disable=True)
    backbone.unet.eval()
    seeded = torch.Generator().manual_seed(0)
    return pipe("a red star", num_inference_steps=2, generator=seeded, output_type="pt").images


def _save_inputs(given: dict, path: Path) -> None:
    tensors = {"noisy": given["noisy"], "timesteps": given["timesteps"], "hidden": given["prompt"].hidden}
    if given["time_ids"] is not None:
        tensors |= {"text_embeds": given["prompt"].pooled, "time_ids": given["time_ids"]}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_fresh_process_computes_the_same(results: dict, name: str, file: str) -> None:
    expected, found = results[name, file]
    assert (expected.prediction - expected.start).abs().max() > 1e-2  # training did something
    torch.testing.assert_close(found["prediction"], expected.prediction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["picture"], expected.picture, atol=1e-5, rtol=1e-5)


def test_alpha_is_in_the_metadata(tiny_sd: Path, tmp_path: Path) -> None:
    model = {"lora": {"rank": 4, "alpha": 2.0}}
    export_run(load(tiny_sd, **model), tmp_path / "out", run_config(tiny_sd, model=model), {})
    with safe_open(tmp_path / "out" / LORA, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        assert all(key.startswith("unet.") and ".lora_" in key for key in file.keys())  # noqa: SIM118
    assert (metadata["unet.r"], metadata["unet.lora_alpha"], metadata["unet.use_dora"]) == (4, 2, False)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("model", [{"train": "lora"}, {"train": "full"}])
def test_save_dtype(tiny_sd: Path, tmp_path: Path, model: dict, name: str, dtype: torch.dtype) -> None:
    backbone = load(tiny_sd, **model)
    folder = export_run(backbone, tmp_path / "out", run_config(tiny_sd, model=model, export={"save_dtype": name}), {})
    file = folder / LORA if model["train"] == "lora" else next((folder / "unet").glob("*.safetensors"))
    assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}
    assert {parameter.dtype for parameter in backbone.trainable_parameters()} == {torch.float32}


@pytest.mark.parametrize("model", [{"train": "lora"}, {"train": "full"}])
def test_averaged_weights_are_exported_when_given(tiny_sd: Path, tmp_path: Path, model: dict) -> None:
    backbone = load(tiny_sd, **model)
    averaged = {name: torch.full_like(tensor, 0.25) for name, tensor in trainable_state(backbone).items()}
    folder = export_run(backbone, tmp_path / "out", run_config(tiny_sd, model=model), {}, averaged)
    file = folder / LORA if model["train"] == "lora" else next((folder / "unet").glob("*.safetensors"))
    assert {float(tensor.unique()) for tensor in load_file(file).values()} == {0.25}


def test_exporting_again_replaces_and_leaves_nothing_behind(tiny_sd: Path, tmp_path: Path) -> None:
    model = {"train": "full"}
    for _ in range(2):
        folder = export_run(load(tiny_sd, **model), tmp_path / "out", run_config(tiny_sd, model=model), {})
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.yaml", "unet"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_are_readable_to_whom_any_new_file_is(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    folder = export_run(load(tiny_sd), tmp_path / "out", run_config(tiny_sd, export={"kohya": True}), {})
    assert (folder / KOHYA).is_file()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_kohya_cannot_carry_dora(tiny_sd: Path, tmp_path: Path) -> None:
    model = {"lora": {"use_dora": True}}
    config = run_config(tiny_sd, model=model, export={"kohya": True})
    with pytest.raises(UserError, match="cannot carry DoRA"):
        export_run(load(tiny_sd, **model), tmp_path / "out", config, {})
    assert (tmp_path / "out" / LORA).is_file()
    assert not (tmp_path / "out" / KOHYA).exists()


def test_half_precision_base_exports_float32_adapters(tiny_sdxl: Path, tmp_path: Path) -> None:
    config = run_config(tiny_sdxl)
    backbone = load_backbone(config.model, "cpu", torch.bfloat16)
    folder = export_run(backbone, tmp_path / "out", config, {})
    assert {tensor.dtype for tensor in load_file(folder / LORA).values()} == {torch.float32}
