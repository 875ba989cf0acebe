"""The arithmetic of the front page's hardware table: sums by hand; what a pass takes is measured elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from hardware_table import KINDS, smallest_card, total_gb


def test_a_lora_is_its_weights_states_and_step_and_ten_percent() -> None:
    found = {"weights GB": 5.0, "optimiser GB": 0.1, "step GB": 0.4, "parameters": 2.5e9}
    assert total_gb(found, KINDS["LoRA of rank 8, AdamW"]) == pytest.approx(1.1 * 5.5)


def test_a_whole_network_has_states_of_its_optimiser_and_a_copy_where_one_is_kept() -> None:
    """One billion weights in float32: 4 GB, 8 of AdamW or 2 of its 8-bit form, 2 for a reference in half precision."""
    found = {"weights GB": 4.0, "optimiser GB": 8.0, "step GB": 5.0, "parameters": 1e9}
    assert total_gb(found, KINDS["whole UNet, AdamW, live reference"]) == pytest.approx(1.1 * (4 + 8 + 2 + 5))
    lean = KINDS["whole UNet, 8-bit AdamW, precomputed or no reference"]
    assert total_gb(found, lean) == pytest.approx(1.1 * (4 + 2 + 5))


@pytest.mark.parametrize(
    ("gigabytes", "card"),
    [(8.16, "8 GB"), (8.17, "12 GB"), (24.4, "24 GB"), (81.6, "80 GB"), (81.7, "more")],
)
def test_cards_are_in_gib_and_not_all_theirs(gigabytes: float, card: str) -> None:
    """0.95 x 8 x 1.073741824 = 8.160; x 24 = 24.48; x 80 = 81.60."""
    assert smallest_card(gigabytes) == card
