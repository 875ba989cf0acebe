"""Reference errors measured once: the same run to the bit, found again by others, refused when anything changed."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2i_align.config import rules
from t2i_align.errors import UserError
from t2i_align.training.metrics import read_metrics
from t2i_align.training.reference_store import ReferenceStore
from t2i_align.training.run import train
from t2i_align.training.step import PairStep

from .runs import run_config, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet", count=4)


def run(folder: Path, pairs: Path, name: str, tmp_path: Path, model: dict, preset: str = "dpo", **training) -> Path:
    """Train four steps of two pairs, two passes over the four pairs; the run folder."""
    config = run_config(
        folder,
        pairs,
        tmp_path / name,
        model=model,
        data={"random_flip": True, "proportion_empty_prompts": 0.3},
        objective={"preset": preset},
        training=training,
    )
    return train(config).output_dir


def numbers(folder: Path) -> list[dict]:
    """What the steps logged, but for the time they took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder / "metrics.jsonl")]


def weights(folder: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / "trainable.safetensors")


def precomputed(tmp_path: Path, **options) -> dict:
    return {"reference": "precomputed", "reference_dir": str(tmp_path / "errors"), **options}


@pytest.mark.parametrize(("train_what", "preset"), [("lora", "dpo"), ("full", "dpo"), ("lora", "kto")])
def test_a_precomputed_run_is_the_live_run_to_the_bit(tiny_sdxl, pairs, tmp_path, train_what, preset):
    what = {"train": train_what}
    live = run(tiny_sdxl, pairs, "live", tmp_path, what, preset)
    kept = run(tiny_sdxl, pairs, "kept", tmp_path, {**what, **precomputed(tmp_path)}, preset)
    assert numbers(kept) == numbers(live)
    live_weights = weights(live)
    assert all(torch.equal(value, live_weights[name]) for name, value in weights(kept).items())


def test_other_runs_and_resumed_ones_make_no_reference_pass(tiny_sdxl, pairs, tmp_path, monkeypatch):
    model = precomputed(tmp_path)
    first = run(tiny_sdxl, pairs, "first", tmp_path, model)
    asked = []
    monkeypatch.setattr(PairStep, "_reference_errors", lambda *args: asked.append(args))
    other = run(tiny_sdxl, pairs, "other", tmp_path, model, "ipo", learning_rate=1e-4, max_train_steps=3)
    assert numbers(other)[0]["r_w"] == numbers(first)[0]["r_w"]
    whole = numbers(first), weights(first)
    shutil.rmtree(first / "checkpoint-4")
    assert run(tiny_sdxl, pairs, "first", tmp_path, model, resume_from_checkpoint="latest") == first
    assert numbers(first) == whole[0]
    assert all(torch.equal(value, whole[1][name]) for name, value in weights(first).items())
    assert asked == []


def test_later_passes_repeat_the_draws(tiny_sdxl, pairs, tmp_path):
    once = run(tiny_sdxl, pairs, "once", tmp_path, precomputed(tmp_path, reference_draws=1), learning_rate=0.0)
    rows = numbers(once)
    seen = sorted(load_file(next((tmp_path / "errors").glob("errors-*.safetensors")))["items"].tolist())
    assert len(seen) == 4
    first_pass, second_pass = (sum(row["r_w"] for row in part) for part in (rows[:2], rows[2:]))
    assert second_pass == pytest.approx(first_pass, rel=1e-6)  # the same four pairs, in another order
    assert [row["loss"] for row in rows] == pytest.approx([0.6931472] * 4, abs=1e-5)  # draws of r are those of e


def test_errors_of_another_reference_are_refused(tmp_path):
    made_from = {"base model": "a" * 32, "seed": 1, "training.mixed_precision": "no"}
    store = ReferenceStore(tmp_path / "errors", made_from)
    store.add(["p", "q"], [0, 1], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    store.flush()
    again = ReferenceStore(tmp_path / "errors", made_from)
    assert again.find(["q"], [1]).tolist() == [[3.0, 4.0]]
    assert again.missing(["p", "p", "q"], [0, 1, 1]) == [False, True, False]
    with pytest.raises(KeyError, match="lacks reference errors of p"):
        again.find(["p"], [1])
    for name, value in (("base model", "b" * 32), ("seed", 2), ("training.mixed_precision", "bf16")):
        with pytest.raises(UserError, match="stale") as caught:
            ReferenceStore(tmp_path / "errors", {**made_from, name: value})
        assert name in caught.value.found
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        ReferenceStore(tmp_path / "other", made_from)
    next((tmp_path / "errors").glob("errors-*")).write_bytes(b"cut")
    with pytest.raises(UserError, match="not a readable shard"):
        ReferenceStore(tmp_path / "errors", made_from)


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({"objective": {"preset": "dpo", "reference": "moving"}}, "precomputed with moving"),
        ({"objective": {"preset": "inpo"}}, "precomputed with ddim_inversion"),
        ({"online": {"method": "online_dpo", "scorer": "shapes:oracle"}}, "precomputed with a section online"),
        ({"model": {"reference": "precomputed", "reference_dir": None}}, "null, and no data.cache_dir"),
    ],
)
def test_what_cannot_be_measured_ahead_is_refused(tiny_sdxl, pairs, tmp_path, sections, found):
    config = run_config(tiny_sdxl, pairs, tmp_path / "run", **{"model": precomputed(tmp_path), **sections})
    problems = [p.found for p in rules.violations(config)]
    assert any(text.startswith(found) for text in problems), problems
