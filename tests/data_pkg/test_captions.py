"""Perturbed captions: deterministic, different, graded, and on the loser's side."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path

import pytest

from t2i_align.data.captions import perturb
from t2i_align.data.provider import PairProvider
from t2i_align.data.sources import open_source

from .make import FakeBackbone, data_config, pickapic, run_config, write_parquet

CAPTION = "a small red circle above two blue squares, on a wooden table, watercolour painting"


@pytest.mark.parametrize("strength", ["weak", "medium", "strong"])
def test_a_perturbation_is_a_function_of_the_caption(strength) -> None:
    assert perturb(CAPTION, strength) == perturb(CAPTION, strength) != CAPTION


def test_strength_is_graded() -> None:
    def likeness(strength) -> float:
        captions = [CAPTION, "three green stars in a dark forest at night", "portrait of an old man with a blue hat"]
        return sum(SequenceMatcher(None, c.split(), perturb(c, strength).split()).ratio() for c in captions)

    assert likeness("weak") > likeness("medium") > likeness("strong")


def test_known_words_change_for_their_like() -> None:
    changed = perturb("a red circle", "weak").split()
    assert changed[0] == "a" and len(changed) == 3 and changed != ["a", "red", "circle"]
    assert perturb("", "strong") == "" and perturb("of the", "medium") == "of the"
    assert perturb("unicorn", "weak") == "no unicorn"


def test_the_loser_gets_it_and_heldout_pairs_do_not(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0], caption=["a red star", "two dogs"]))
    config = run_config(file, loser_captions="medium")
    source = open_source(config.data)
    assert source.captions_differ and source.fingerprint != open_source(data_config(file)).fingerprint
    assert source.describe(0).caption == "a red star"
    assert source.describe(0).caption_1 == perturb("a red star", "medium")
    assert source.describe(1).caption_1 == "two dogs" and source.describe(1).caption == perturb("two dogs", "medium")
    backbone = FakeBackbone()
    pairs = PairProvider(config, backbone, batch_size=2, accumulation=1, device="cpu", needs={"captions"})
    batch = pairs.batch(0, 0)
    assert sorted(backbone.prompts_encoded[-4:-2]) == ["a red star", "two dogs"] and batch.prompt_loser is not None
    held_out = open_source(data_config(file, loser_captions="medium", heldout_fraction=0.5), "heldout")
    assert not held_out.captions_differ
