"""Rows as aligned text, for commands that list things."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(table: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Cells as aligned text; the last one goes to a line of its own where a row would not fit.

    Args:
        table: rows of equally many cells.
        width: characters of the terminal; None: no limit.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    fits = width is None or sum(widths) + 2 * len(widths) - 2 <= width
    lines = []
    for *head, last in table:
        start = "  ".join(cell.ljust(size) for cell, size in zip(head, widths, strict=False))
        lines += [f"{start}  {last}"] if fits else [start.rstrip(), f"    {last}"]
    return "\n".join(lines)
