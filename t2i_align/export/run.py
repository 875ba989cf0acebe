"""``export_run`` and ``export_checkpoint``: from trained weights to a folder that plain diffusers loads."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_models.files import share
from reward_models.text_tables import split_lines
from t2i_align.backbones.base import Backbone
from t2i_align.backbones.loading import load_backbone
from t2i_align.backbones.pieces import part_files
from t2i_align.backbones.trainable import TRAINABLE, load_trainable, trainable_state
from t2i_align.config.loading import load_config, save_resolved
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.export.card import model_card
from t2i_align.export.history import History, in_words, read_history
from t2i_align.export.weights import DTYPES, lora_entries, save_kohya, save_lora, save_unet, save_user_adapter

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
EMA, STATE_FILE, CONFIG_FILE, METRICS_FILE = "ema", "state.json", "config.yaml", "metrics.jsonl"
LAST_ROWS = 20  # held-out values are logged less often than losses


def export_run(
    backbone: Backbone,
    output_dir: str | Path,
    config: RunConfig,
    metrics: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
    *,
    data_fingerprint: str | None = None,
    history: History = (),
) -> Path:
    """Write portable weights, the model card and the configuration.

    A LoRA becomes ``pytorch_lora_weights.safetensors`` (and, with ``export.kohya``, a second file), a fully trained
    UNet becomes ``unet/``, a user adapter what ``personal.load_personal`` reads. Files appear complete or not at all;
    earlier ones of the same names are replaced.

    Args:
        backbone: the policy, adapted as `config` says.
        output_dir: made if needed.
        config: of the run.
        metrics: last logged values, for the card.
        weights: name -> whole trained weight, averaged or collected from several processes; by default the policy's.
        data_fingerprint: identity of the training pairs, for the card.
        history: what the run was resumed with, for card and configuration.

    Returns:
        `output_dir`.

    Raises:
        UserError: kohya keys were asked for and cannot carry this LoRA; everything else has been written then.
    """
    output_dir = Path(output_dir)
    trained = trainable_state(backbone)
    weights = trained if weights is None else {name: weights[name] for name in trained}
    staging = output_dir.with_name(f".{output_dir.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    dtype = DTYPES[config.export.save_dtype]
    entries = lora_entries(backbone, weights, dtype) if config.model.train == "lora" else None
    if entries is not None:
        save_lora(backbone, entries, config.model.lora, staging)
    elif config.model.train == "user":
        save_user_adapter(backbone, weights, dtype, staging)
    else:
        save_unet(backbone, weights, dtype, staging)
    config = config.model_copy(update={"model": config.model.model_copy(update={"variant": backbone.variant})})
    card = model_card(config, backbone.pipeline_class.__name__, metrics, data_fingerprint, history)
    (staging / "README.md").write_text(card, encoding="utf-8")
    save_resolved(_movable(config), staging / CONFIG_FILE, in_words(history))
    _publish(staging, output_dir)
    if entries is not None and config.export.kohya:
        save_kohya(backbone, entries, config.model.lora, output_dir)
    return output_dir


def export_checkpoint(run_dir: str | Path, checkpoint: str | Path | None, output_dir: str | Path) -> Path:
    """Export from a checkpoint of a run, finished or not.

    Args:
        run_dir: run folder, with its ``config.yaml``.
        checkpoint: ``checkpoint-N`` (name or folder); None takes the latest.
        output_dir: where to write.

    Raises:
        UserError: no such run or checkpoint, or one that does not fit the run's configuration.
    """
    run_dir = Path(run_dir)
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError("This is not a run folder.", f"{run_dir} has no {CONFIG_FILE}", "give the run's output_dir")
    config = load_config(run_dir / CONFIG_FILE)
    folder = find_checkpoint(run_dir, checkpoint)
    plain = {"attention": "sdpa", "gradient_checkpointing": False, "compile": False}
    backbone = load_backbone(config.model.model_copy(update=plain), "cpu", torch.float32, needs_reference=False)
    if config.personal is not None:
        from t2i_align.personal.build import attach_saved

        attach_saved(backbone, run_dir)
    averaged = config.training.ema.enabled and bool(part_files(folder, EMA))
    load_trainable(backbone, folder, EMA if averaged else TRAINABLE)
    state = json.loads((folder / STATE_FILE).read_text()) if (folder / STATE_FILE).is_file() else {}
    return export_run(
        backbone,
        output_dir,
        config,
        last_metrics(run_dir / METRICS_FILE, until=_number(folder)),
        data_fingerprint=state.get("identity", {}).get("pairs"),
        history=read_history(run_dir, before=_number(folder)),
    )


def find_checkpoint(run_dir: Path, checkpoint: str | Path | None) -> Path:
    """The folder of a checkpoint by name or path, or of the latest.

    Raises:
        UserError: there is none.
    """
    existing = sorted((path for path in run_dir.glob("checkpoint-*") if _complete(path)), key=_number)
    if checkpoint is None and existing:
        return existing[-1]
    for path in () if checkpoint is None else (Path(checkpoint), run_dir / checkpoint):
        if _complete(path):
            return path
    raise UserError(
        "There is no such checkpoint.",
        f"{checkpoint or 'none'}; in {run_dir}: {', '.join(path.name for path in existing) or 'none'}",
        "name one of them" if existing else "train until training.checkpointing_steps, or let the run finish",
    )


def last_metrics(path: Path, until: int) -> dict[str, Any]:
    """The last value of each metric logged up to step `until`; empty without a file."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in split_lines(path.read_text(encoding="utf-8")) if line.strip()]
    rows = [row for row in rows if row.get("step", 0) <= until][-LAST_ROWS:]
    return {name: value for row in rows for name, value in row.items()}


def _complete(path: Path) -> bool:
    return CHECKPOINT.fullmatch(path.name) is not None and bool(part_files(path, TRAINABLE))


def _number(path: Path) -> int:
    match = CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else 0


def _movable(config: RunConfig) -> RunConfig:
    """The same configuration with local model folders made absolute, so that the export finds its base anywhere."""
    model = config.model
    names = {
        name: str(Path(value).expanduser().resolve())
        for name in ("pretrained_model_name_or_path", "pretrained_vae_model_name_or_path")
        if (value := getattr(model, name)) is not None and Path(value).expanduser().exists()
    }
    return config.model_copy(update={"model": model.model_copy(update=names)})


def _publish(staging: Path, output_dir: Path) -> None:
    """Move finished files into place, replacing earlier ones of the same names."""
    output_dir.mkdir(parents=True, exist_ok=True)
    share(staging)
    for entry in staging.iterdir():
        target = output_dir / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
    staging.rmdir()
