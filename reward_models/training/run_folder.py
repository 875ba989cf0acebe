"""What a run leaves on disk: configuration, metrics, checkpoints, scorers; written by one process, renamed
whole.

    config.json         the resolved configuration
    metrics.jsonl       one row per step, one per validation
    checkpoint-N/       everything to resume bit for bit (accelerate's layout)
    best/, final/       scorers that `load` reads
    metrics.json        held-out report of both: accuracy, calibration, reliability curve
    calibration.png     the reliability curve of best/
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from reward_models.errors import RewardModelError
from reward_models.files import share, write_json, write_text
from reward_models.text_tables import split_lines
from reward_models.training.config import RewardTrainingConfig

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Settings that may differ between the run and its continuation: they do not change any step.
_FREE = {
    "checkpoint",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "dataloader_num_workers",
    "output_dir",
    "resume_from_checkpoint",
    "validation_steps",
}


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, config: RewardTrainingConfig) -> None:
        self.config, self.root = config, config.output_dir

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [(int(m[1]), path) for path in self.root.glob("*") if (m := _CHECKPOINT.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint the configuration asks for; None starts afresh, which needs an empty folder.

        Raises:
            RewardModelError: it is missing, belongs to another configuration, or would overwrite a run.
        """
        wanted = self.config.resume_from_checkpoint
        if wanted not in (None, "latest"):
            path: Path | None = Path(wanted)
            if not Path(wanted).is_dir():
                raise RewardModelError("the checkpoint to resume from does not exist", found=wanted)
            self._refuse_to_go_back(Path(wanted))
        else:
            done = self.checkpoints() if wanted == "latest" else []
            path = done[-1] if done else None
            if path is None:
                self._fresh(may_be_interrupted=wanted == "latest")
        if path is not None:
            self._same_configuration(path)
        return path

    def is_finished(self, checkpoint: Path | None) -> bool:
        """Whether the checkpoint is the end of a run whose results are all here."""
        match = _CHECKPOINT.fullmatch(checkpoint.name) if checkpoint is not None else None
        made = (self.root / "metrics.json").is_file() and (self.root / "final").is_dir()
        return made and match is not None and int(match[1]) == self.config.max_train_steps

    def _refuse_to_go_back(self, checkpoint: Path) -> None:
        """Later checkpoints would be those of a course that was given up, and `latest` would take them."""
        own = [path.name for path in self.checkpoints()]
        inside = checkpoint.resolve().parent == self.root.resolve() and checkpoint.name in own
        later = own[own.index(checkpoint.name) + 1 :] if inside else []
        if later:
            raise RewardModelError(
                "the folder holds later checkpoints than the one to resume from",
                found=f"{checkpoint}; later: {', '.join(later)}",
                fix="delete the later ones to go back, or choose another output_dir",
            )

    def _fresh(self, may_be_interrupted: bool) -> None:
        """Refuse a folder with anything in it, except a run that ended before its first checkpoint."""
        names = {path.name for path in self.root.iterdir()} if self.root.exists() else set()
        if names and not (may_be_interrupted and {"config.json", "metrics.jsonl"} <= names):
            raise RewardModelError(
                "the output folder is not empty",
                found=str(self.root),
                fix="choose a new output_dir, or resume_from_checkpoint: latest",
            )

    def _same_configuration(self, checkpoint: Path) -> None:
        before = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        now = json.loads(self.config.model_dump_json(by_alias=True))
        changed = sorted(key for key in now if key not in _FREE and before.get(key) != now[key])
        if changed:
            raise RewardModelError(
                "the checkpoint belongs to a run with other settings",
                found="; ".join(f"{key}: {before.get(key)} then, {now[key]} now" for key in changed),
                fix="restore them, or start in a new output_dir",
            )

    def start(self, resumed_step: int) -> None:
        """Create the folder, write the configuration, drop metric rows later than the resumed step."""
        self.write_json("config.json", json.loads(self.config.model_dump_json(by_alias=True)))
        metrics = self.root / "metrics.jsonl"
        rows = split_lines(metrics.read_text(encoding="utf-8")) if metrics.exists() else []
        kept = [row for row in rows if json.loads(row)["step"] <= resumed_step]
        write_text(metrics, "".join(f"{row}\n" for row in kept))

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to `metrics.jsonl`."""
        with (self.root / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file completely or not at all."""
        write_json(self.root / name, content)

    def finish_checkpoint(self, partial: Path, step: int) -> None:
        """Rename a written checkpoint and remove the oldest beyond the limit."""
        target = self.root / f"checkpoint-{step}"
        shutil.copyfile(self.root / "config.json", partial / "config.json")
        shutil.rmtree(target, ignore_errors=True)
        share(partial)
        os.replace(partial, target)
        for old in self.checkpoints()[: -self.config.checkpoints_total_limit]:
            shutil.rmtree(old)
