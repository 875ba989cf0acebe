"""The score table: one row per picture, scorer and dimension, kept as parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from reward_models.files import complete_file

SCORES_FILE = "scores.parquet"


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score of one picture.

    Attributes:
        model: name within the evaluation.
        prompt_index, draw: which picture of the model.
        prompt, seed: what it was sampled from.
        picture: hash of the file's bytes, by which a score is found again on resuming.
        scorer, version, dimension: what was measured and by which release of the scorer.
        score: higher is better; None where the picture could not be decoded or the scorer gave no number.
    """

    model: str
    prompt_index: int
    draw: int
    prompt: str
    seed: int
    picture: str
    scorer: str
    version: str
    dimension: str
    score: float | None


@dataclass(frozen=True)
class ScoreTable:
    """All scores of an evaluation."""

    rows: tuple[ScoreRow, ...]

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Model names in the order scored."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @cached_property
    def dimensions(self) -> tuple[tuple[str, str], ...]:
        """(scorer, dimension) pairs in the order scored."""
        return tuple(dict.fromkeys((row.scorer, row.dimension) for row in self.rows))

    @cached_property
    def versions(self) -> dict[str, str]:
        """scorer -> version."""
        return {row.scorer: row.version for row in self.rows}

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Prompts and seeds per prompt."""
        return 1 + max(row.prompt_index for row in self.rows), 1 + max(row.draw for row in self.rows)

    @cached_property
    def _matrices(self) -> dict[tuple[str, str, str], np.ndarray]:
        matrices: dict[tuple[str, str, str], np.ndarray] = {}
        for row in self.rows:
            key = (row.model, row.scorer, row.dimension)
            matrix = matrices.setdefault(key, np.full(self.shape, np.nan))
            matrix[row.prompt_index, row.draw] = np.nan if row.score is None else row.score
        return matrices

    def matrix(self, model: str, scorer: str, dimension: str) -> np.ndarray:
        """``[prompts, draws]`` scores; NaN where there is none."""
        return self._matrices[model, scorer, dimension]

    def missing(self, model: str) -> int:
        """Pictures of a model without a score in at least one dimension."""
        return len({(r.prompt_index, r.draw) for r in self.rows if r.model == model and r.score is None})

    def write(self, path: Path, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        """Write parquet, completely or not at all.

        Args:
            groups: column name -> label of each prompt by its index, e.g. a suite's category.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"prompt_index": pa.int32(), "draw": pa.int32(), "seed": pa.int64(), "score": pa.float64()}
        columns = {
            field.name: pa.array([getattr(row, field.name) for row in self.rows], types.get(field.name, pa.string()))
            for field in fields(ScoreRow)
        }
        for name, labels in (groups or {}).items():
            columns[name] = pa.array([labels[row.prompt_index] for row in self.rows], pa.string())
        with complete_file(path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    @classmethod
    def read(cls, path: Path) -> ScoreTable:
        """Read what ``write`` wrote."""
        import pyarrow.parquet as pq

        names = [field.name for field in fields(ScoreRow)]
        columns = pq.read_table(path, columns=names).to_pydict()
        return cls(tuple(ScoreRow(*values) for values in zip(*(columns[name] for name in names), strict=True)))

    @classmethod
    def of(cls, rows: Iterable[ScoreRow]) -> ScoreTable:
        """Collect rows."""
        return cls(tuple(rows))
