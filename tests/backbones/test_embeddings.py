"""Prompt embedding helpers."""

from __future__ import annotations

import pytest
import torch

from t2i_align.backbones import PromptEmbeddings


def numbered(start: int, count: int = 2, pooled: bool = True) -> PromptEmbeddings:
    rows = torch.arange(start, start + count, dtype=torch.float32)
    return PromptEmbeddings(rows[:, None, None].expand(-1, 3, 4), rows[:, None].expand(-1, 5) if pooled else None)


def test_cat_repeat_and_index_keep_rows_together() -> None:
    both = numbered(0).cat(numbered(10))
    assert both.hidden[:, 0, 0].tolist() == both.pooled[:, 0].tolist() == [0, 1, 10, 11]
    assert numbered(0).repeat(2).pooled[:, 0].tolist() == [0, 1, 0, 1]
    assert both.index([3, 0]).hidden[:, 0, 0].tolist() == [11, 0]
    assert len(both.index(slice(1, 3))) == 2


def test_where_takes_rows_from_the_other() -> None:
    mixed = numbered(0, 3).where(torch.tensor([True, False, True]), numbered(9, 1))
    assert mixed.hidden[:, 0, 0].tolist() == mixed.pooled[:, 0].tolist() == [0, 9, 2]


def test_pooled_state_is_all_or_nothing() -> None:
    assert numbered(0, pooled=False).cat(numbered(1, pooled=False)).pooled is None
    with pytest.raises(ValueError, match="pooled"):
        numbered(0).cat(numbered(1, pooled=False))
    with pytest.raises(ValueError, match="pooled"):
        numbered(0).where(torch.tensor([True, False]), numbered(1, pooled=False))


def test_to_casts_both() -> None:
    half = numbered(0).to(dtype=torch.float16)
    assert half.hidden.dtype == half.pooled.dtype == torch.float16
