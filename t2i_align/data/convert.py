"""Any source to one parquet file in the Pick-a-Pic schema, pair by pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reward_models.files import complete_file
from t2i_align.config.schema import DataConfig, PairField
from t2i_align.data.cache_store import key_of
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import UndecodableImage, decode
from t2i_align.data.sources import open_source
from t2i_align.data.wording import counted
from t2i_align.errors import UserError

ROWS_PER_GROUP = 64  # what one random read costs
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ConvertReport:
    """What was written.

    Attributes:
        output: the file.
        pairs: rows in it.
        skipped: "where: reason" of pairs that cannot be decoded.
    """

    output: Path
    pairs: int
    skipped: list[str]

    def render(self) -> str:
        """A few lines of plain text."""
        lines = [f"{counted(self.pairs, 'pair')} written to {self.output}"]
        if self.skipped:
            lines += [f"{counted(len(self.skipped), 'pair')} left out:", *(f"  {text}" for text in self.skipped)]
        return "\n".join(lines)


def convert(
    source: str,
    output: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    columns: Mapping[PairField, str] | None = None,
    skip_undecodable: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write all pairs of a source, ties included, in row groups small enough for random reads.

    Pictures are copied byte for byte. Ranked lists become pairs, with weights under which every list counts the same.

    Args:
        source: anything ``data.source`` may be.
        output: a new ``.parquet`` file.
        format, split, columns: as in the data section.
        skip_undecodable: leave such pairs out instead of refusing.
        progress: called with what is written, the number done and the total.

    Raises:
        UserError: the source cannot be used, a picture cannot be decoded, or the output exists.
    """
    output = new_parquet(Path(output))
    # Every pair is kept as it is; the resolution is never looked at.
    config = DataConfig.model_validate(
        {
            "source": source,
            "format": format,
            "split": split,
            "columns": dict(columns or {}),
            "ties": "soft",
            "resolution": 8,
        }
    )
    return write_pairs(open_source(config), output, skip_undecodable=skip_undecodable, progress=progress)


def write_pairs(
    pairs: PairSource, output: Path, *, skip_undecodable: bool = False, progress: Progress | None = None
) -> ConvertReport:
    """Write pairs to a new parquet file, complete or not at all; see `convert`."""
    skipped: list[str] = []
    written = 0
    with (
        complete_file(output) as temporary,
        pq.ParquetWriter(temporary, _schema(pairs), use_dictionary=["caption", "user_id"]) as writer,
    ):
        for rows in _groups(_rows(pairs, skip_undecodable, skipped, progress)):
            writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
            written += len(rows)
    return ConvertReport(output, written, skipped)


def new_parquet(output: Path) -> Path:
    """The path of a parquet file to be written.

    Raises:
        UserError: another kind of file, or one that exists.
    """
    output = output.expanduser()
    if output.suffix != ".parquet":
        raise UserError("The output must be a .parquet file.", str(output), "name it such as pairs.parquet")
    if output.exists():
        raise UserError("The output exists already.", str(output), "delete it or name another file")
    return output


def _schema(pairs: PairSource) -> pa.Schema:
    fields = [
        ("ranking_id", pa.string()),
        ("user_id", pa.string()),
        ("caption", pa.string()),
        ("image_0_uid", pa.string()),
        ("image_1_uid", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("best_image_uid", pa.string()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("are_different", pa.bool_()),
        ("has_label", pa.bool_()),
        ("num_example_per_prompt", pa.int64()),
    ]
    if pairs.captions_differ:
        fields.append(("caption_1", pa.string()))
    if (pairs.weights() != 1).any():
        fields.append(("weight", pa.float64()))
    if pairs.has_scores:
        fields += [("score_0", pa.float64()), ("score_1", pa.float64())]
    if pairs.margin_names:
        fields.append(("margins", pa.struct([(name, pa.float64()) for name in pairs.margin_names])))
    return pa.schema(fields)


def _rows(pairs: PairSource, skip: bool, skipped: list[str], progress: Progress | None) -> Iterator[dict[str, Any]]:
    """One row per pair that can be decoded; the others are noted in ``skipped`` or refused."""
    per_prompt = Counter(pairs.captions())
    for index in range(len(pairs)):
        try:
            record = pairs[index]
            decode(record.image_0)
            decode(record.image_1)
        except UndecodableImage as error:
            where = f"{pairs.location(index)}: {error}"
            if not skip:
                raise UserError(
                    "A picture cannot be decoded.", where, "repair it, or leave such pairs out with --skip-undecodable"
                ) from error
            skipped.append(where)
            continue
        uids = [f"{key_of(image) & 0xFFFFFFFFFFFFFFFF:016x}" for image in (record.image_0, record.image_1)]
        yield {
            "ranking_id": record.pair_id,
            "user_id": record.user_id,
            "caption": record.caption,
            "image_0_uid": uids[0],
            "image_1_uid": uids[1],
            "jpg_0": record.image_0,
            "jpg_1": record.image_1,
            "best_image_uid": "none" if record.is_tie else uids[int(record.label_0 < 0.5)],
            "label_0": record.label_0,
            "label_1": 1.0 - record.label_0,
            "are_different": uids[0] != uids[1],
            "has_label": True,
            "num_example_per_prompt": per_prompt[record.caption],
            "caption_1": record.caption_1,
            "weight": record.weight,
            "margins": record.margins,
            "score_0": None if record.scores is None else record.scores[0],
            "score_1": None if record.scores is None else record.scores[1],
        }
        if progress is not None:
            progress("pairs", index + 1, len(pairs))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group
