"""Exporting from a checkpoint of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i_align.backbones import trainable_state
from t2i_align.config.loading import load_config, save_resolved
from t2i_align.errors import UserError
from t2i_align.export import export_checkpoint
from t2i_align.export.run import last_metrics
from tests.backbones.common import load, perturb
from tests.export.common import run_config

LORA = "pytorch_lora_weights.safetensors"


def write_run(base: Path, run: Path, steps: tuple[int, ...] = (5, 10), ema: bool = False, **model: object) -> Path:
    """The files of a run that an export reads; checkpoint-N holds N / 100 in every trained weight."""
    config = run_config(base, run, model=model, training={"ema": {"enabled": ema}})
    save_resolved(config, run / "config.yaml")
    for step in steps:
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        backbone = load(base, **model)
        weights = {name: torch.full_like(tensor, step / 100) for name, tensor in trainable_state(backbone).items()}
        save_file(weights, folder / "trainable.safetensors")
        if ema:
            save_file({name: 2 * tensor for name, tensor in weights.items()}, folder / "ema.safetensors")
        (folder / "state.json").write_text(json.dumps({"step": step, "identity": {"pairs": f"pairs-{step}"}}))
    rows = [{"step": step, "loss": step / 10} for step in range(1, 12)] + [
        {"step": 5, "heldout/implicit_accuracy": 0.75}
    ]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return run


def values(file: Path) -> list[float]:
    return [round(value, 6) for value in torch.cat([t.flatten() for t in load_file(file).values()]).unique().tolist()]


def test_latest_named_and_averaged(tiny_sd: Path, tmp_path: Path) -> None:
    run = write_run(tiny_sd, tmp_path / "run")
    assert values(export_checkpoint(run, None, tmp_path / "latest") / LORA) == [0.1]
    named = export_checkpoint(run, "checkpoint-5", tmp_path / "named")
    assert values(named / LORA) == [0.05]
    card = (named / "README.md").read_text()
    assert "| loss | 0.5 |" in card
    assert "| heldout/implicit_accuracy | 0.75 |" in card
    assert "`pairs-5`" in card
    averaged = write_run(tiny_sd, tmp_path / "ema", steps=(5,), ema=True)
    assert values(export_checkpoint(averaged, averaged / "checkpoint-5", tmp_path / "out") / LORA) == [0.1]


def test_full_training(tiny_sd: Path, tmp_path: Path) -> None:
    run = write_run(tiny_sd, tmp_path / "run", steps=(5,), train="full")
    export_checkpoint(run, None, tmp_path / "out")
    assert values(next((tmp_path / "out/unet").glob("*.safetensors"))) == [0.05]


def test_the_exported_configuration_finds_its_base_from_anywhere(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_sd.parent)
    run = write_run(Path(tiny_sd.name), tmp_path / "run", steps=(5,))
    exported = load_config(export_checkpoint(run, None, tmp_path / "out") / "config.yaml")
    assert exported.model.pretrained_model_name_or_path == str(tiny_sd.resolve())


def test_missing_run_or_checkpoint(tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        export_checkpoint(tmp_path / "nothing", None, tmp_path / "out")
    run = write_run(tiny_sd, tmp_path / "run", steps=())
    with pytest.raises(UserError, match="no such checkpoint"):
        export_checkpoint(run, None, tmp_path / "out")
    with pytest.raises(UserError, match="checkpoint-7; in .*: none"):
        export_checkpoint(run, "checkpoint-7", tmp_path / "out")


def test_checkpoint_of_another_architecture(tiny_sd: Path, tmp_path: Path) -> None:
    run = write_run(tiny_sd, tmp_path / "run", steps=(5,))
    other = load(tiny_sd, lora={"rank": 3})
    perturb(other)
    weights = {name: tensor.detach() for name, tensor in trainable_state(other).items()}
    save_file(weights, run / "checkpoint-5/trainable.safetensors")
    with pytest.raises(UserError, match=r"is \[3, 16\], expected \[16, 16\]"):
        export_checkpoint(run, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_metrics_stop_at_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_metrics(file, 3) == {}
    file.write_text('{"step": 1, "a": 1, "b": 2}\n{"step": 2, "a": 3}\n\n{"step": 4, "a": 9}\n')
    assert last_metrics(file, 3) == {"step": 2, "a": 3, "b": 2}
