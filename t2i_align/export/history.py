"""What a run was resumed with: ``resumed.json`` of its folder, one entry for each time it went on from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models.files import write_json

RESUMED_FILE = "resumed.json"
History = Sequence[dict[str, Any]]


def read_history(run_dir: Path, before: int | None = None) -> list[dict[str, Any]]:
    """Entries of a run, oldest first; none where it was never resumed.

    Args:
        run_dir: the run folder.
        before: only those that had made an update by this step; None takes all.

    Returns:
        Of each: ``step`` and ``checkpoint`` it went on from; ``changed``, settings that act on what is trained: key ->
        ``{"then", "now"}``; ``beside``, other settings, and ``environment``, alike.
    """
    file = run_dir / RESUMED_FILE
    entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return [entry for entry in entries if before is None or entry["step"] < before]


def write_history(run_dir: Path, entry: dict[str, Any]) -> None:
    """Add an entry; those from its step on are dropped, like the metrics of steps that are made again."""
    write_json(run_dir / RESUMED_FILE, [*read_history(run_dir, before=entry["step"]), entry], indent=1)


def in_words(history: History) -> list[str]:
    """A line for each acting setting that changed: ``From step 3 on training.learning_rate is 0.5; before: 1.0.``"""
    return [
        f"From step {entry['step'] + 1} on {key} is {value['now']}; before: {value['then']}."
        for entry in history
        for key, value in entry["changed"].items()
    ]
