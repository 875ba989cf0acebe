"""Scores of generated pictures, with a table that survives interruption."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from reward_models.errors import RewardModelError
from reward_models.images import decode_image
from t2i_align.errors import UserError
from t2i_align.evaluation.manifest import Picture, read_manifest
from t2i_align.evaluation.scorers import Scorer, open_scorer
from t2i_align.evaluation.table import SCORES_FILE, ScoreRow, ScoreTable
from t2i_align.processes import Processes, parts_of
from t2i_align.progress import Progress

logger = logging.getLogger(__name__)

Known = Mapping[tuple[str, str, str, str], Mapping[str, float | None]]
"""(picture hash, prompt, scorer, version) -> dimension -> score, from an earlier table."""


def run(
    folders: Mapping[str, str | Path],
    scorers: Sequence[str | Scorer],
    output_dir: str | Path,
    *,
    first_prompts: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> ScoreTable:
    """Score every picture of every model and write ``scores.parquet``.

    A picture that cannot be decoded gets rows without a score and is counted; it takes no part in any
    comparison. A score is taken from an earlier table where picture, prompt, scorer and version are the
    same; the table is written after each model and scorer.

    Args:
        folders: model name -> folder with a manifest.
        scorers: names (see ``open_scorer``) or scorers.
        output_dir: gets the table.
        first_prompts: leave out pictures of later prompts, which an earlier and longer run may have left.

    Raises:
        UserError: a folder has no manifest, a scorer is unknown, or a model has no picture that can be
            scored.
    """
    path, processes = Path(output_dir) / SCORES_FILE, Processes.here()
    path.parent.mkdir(parents=True, exist_ok=True)
    manifests = {name: (Path(folder), _pictures(folder, first_prompts)) for name, folder in folders.items()}
    known = {key: row for file in (path, *parts_of(path)) if file.is_file() for key, row in _known(file).items()}
    processes.wait()  # all know the same before anything is added
    rows: list[ScoreRow] = []
    mine: list[ScoreRow] = []
    for spec in scorers:
        scorer = open_scorer(spec, processes.device(device))
        if processes.count > 1:
            mine += _score_share(processes, scorer, manifests, known, batch_size)
            ScoreTable.of(mine).write(processes.part(path))
            processes.wait()
            known.update({key: row for file in parts_of(path) for key, row in _known(file).items()})
        for model, (folder, pictures) in manifests.items():
            rows += _score_model(scorer, model, folder, pictures, known, batch_size)
            if processes.is_main:
                ScoreTable.of(rows).write(path)
    processes.wait()
    for part in parts_of(path) if processes.is_main else ():
        part.unlink()
    return ScoreTable.of(rows)


def _score_share(
    processes: Processes,
    scorer: Scorer,
    manifests: Mapping[str, tuple[Path, list[Picture]]],
    known: Known,
    batch_size: int,
) -> list[ScoreRow]:
    """Rows of this process's pictures, of every model."""
    rows = []
    for model, (folder, pictures) in manifests.items():
        mine = processes.share(pictures, batch_size, lambda picture: picture.index)
        if mine:
            rows += _score_model(scorer, model, folder, mine, known, batch_size, alone=False)
    return rows


def _pictures(folder: str | Path, first_prompts: int | None) -> list[Picture]:
    pictures = read_manifest(folder)
    return [picture for picture in pictures if first_prompts is None or picture.prompt_index < first_prompts]


def _score_model(
    scorer: Scorer,
    model: str,
    folder: Path,
    pictures: list[Picture],
    known: Known,
    batch_size: int,
    alone: bool = True,
) -> list[ScoreRow]:
    """Rows of all the pictures; without ``alone`` others have more of them, and nothing is said of missing scores."""
    encoded = [_read(folder / picture.file) for picture in pictures]
    hashes = [hashlib.blake2b(data, digest_size=12).hexdigest() for data in encoded]
    results: list[Mapping[str, float | None] | None] = [
        known.get((digest, picture.prompt, scorer.name, scorer.version))
        for digest, picture in zip(hashes, pictures, strict=True)
    ]
    missing = [index for index, result in enumerate(results) if result is None]
    with Progress(f"{scorer.name} scores {model}", len(missing), show=Processes.here().is_main) as progress:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            scores = _score_batch(scorer, [pictures[i].prompt for i in batch], [encoded[i] for i in batch])
            for index, result in zip(batch, scores, strict=True):
                results[index] = result
            progress.advance(len(batch))
    if alone:
        _report_missing(scorer, model, folder, results)
    return [
        ScoreRow(
            model=model,
            prompt_index=picture.prompt_index,
            draw=picture.draw,
            prompt=picture.prompt,
            seed=picture.seed,
            picture=digest,
            scorer=scorer.name,
            version=scorer.version,
            dimension=dimension,
            score=(result or {}).get(dimension),
        )
        for picture, digest, result in zip(pictures, hashes, results, strict=True)
        for dimension in scorer.dimensions
    ]


def _score_batch(scorer: Scorer, prompts: list[str], encoded: list[bytes]) -> list[dict[str, float | None]]:
    """dimension -> score per picture; all None for a picture that cannot be decoded."""
    images = {index: image for index, data in enumerate(encoded) if (image := _decode(data)) is not None}
    usable = list(images)
    results: list[dict[str, float | None]] = [dict.fromkeys(scorer.dimensions) for _ in encoded]
    if not usable:
        return results
    scores = scorer.score([prompts[index] for index in usable], list(images.values()))
    for dimension in scorer.dimensions:
        values = np.asarray(scores[dimension], dtype=np.float64)
        if values.shape != (len(usable),):
            raise ValueError(f"{scorer.name} gave {values.shape} scores for {len(usable)} pictures")
        for index, value in zip(usable, values, strict=True):
            results[index][dimension] = float(value) if np.isfinite(value) else None
    return results


def _report_missing(scorer: Scorer, model: str, folder: Path, results: Sequence[Mapping | None]) -> None:
    bad = sum(result is None or any(value is None for value in result.values()) for result in results)
    if bad == len(results):
        raise UserError(
            f"No picture of {model} could be scored by {scorer.name}.",
            f"{bad} pictures in {folder}",
            "generate the pictures again with --overwrite",
        )
    if bad:
        logger.warning("%d of %d pictures of %s have no score by %s", bad, len(results), model, scorer.name)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _decode(data: bytes) -> Image.Image | None:
    try:
        return decode_image(data)
    except RewardModelError:
        return None


def _known(file: Path) -> dict[tuple[str, str, str, str], dict[str, float | None]]:
    """Scores of an earlier table."""
    known: dict[tuple[str, str, str, str], dict[str, float | None]] = {}
    for row in ScoreTable.read(file).rows:
        if row.score is not None:
            known.setdefault((row.picture, row.prompt, row.scorer, row.version), {})[row.dimension] = row.score
    return known
