"""Jobs that several processes share: the files are those of one process, also when some were killed on the way.

Threads stand for processes where only files and meeting points matter; one test starts real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from reward_models.preprocess import Preprocessor
from reward_models.score_files import ScoreItem, score_files
from t2i_align.data.cache import build_cache, open_cache
from t2i_align.data.sources import open_source
from t2i_align.data.transform import Geometry
from t2i_align.evaluation import generate, score
from t2i_align.evaluation.manifest import MANIFEST_FILE, append_to_manifest, read_manifest
from t2i_align.processes import Processes, join_lines, parts_of
from tests.data_pkg.make import FakeBackbone, data_config, pickapic, write_parquet

PROMPTS = [f"a red circle {index}" for index in range(7)]
QUICK = {"num_inference_steps": 2, "guidance_scale": 3.0, "show_progress": False, "batch_size": 2, "device": "cpu"}


class Together:
    """Runs a job in threads that think they are processes; one that fails breaks the others' wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch, self._own, loading, load = monkeypatch, threading.local(), threading.Lock(), generate.load_model

        def load_one_by_one(*arguments: object) -> object:  # diffusers patches modules while it loads
            with loading:
                return load(*arguments)

        monkeypatch.setattr(generate, "load_model", load_one_by_one)

    def run(self, count: int, job: Callable[[int], object]) -> list[object]:
        barrier = threading.Barrier(count, timeout=120)
        self._patch.setattr(Processes, "here", classmethod(lambda cls: getattr(self._own, "processes", cls())))
        self._patch.setattr(Processes, "wait", lambda process: barrier.wait() if process.count > 1 else None)
        results: list[object] = [None] * count

        def work(rank: int) -> None:
            self._own.processes = Processes(rank, count, rank)
            try:
                results[rank] = job(rank)
            except BaseException as error:
                results[rank] = error
                barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    return Together(monkeypatch)


def test_shares_are_whole_batches_and_complete() -> None:
    items = list(range(23))
    shares = [Processes(rank, 3).share(items, 4, lambda item: item) for rank in range(3)]
    assert sorted(sum(shares, [])) == items
    assert shares[1] == [4, 5, 6, 7, 16, 17, 18, 19]
    left = [item for item in items if item % 2]  # what is done does not move the others
    assert all(set(Processes(rank, 3).share(left, 4, lambda item: item)) <= set(shares[rank]) for rank in range(3))


def test_the_launchers_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes.here() == Processes(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Processes.here() == Processes(5, 8, 1) and not Processes.here().is_main
    assert Processes.here().part(Path("a/m.jsonl")) == Path("a/m.jsonl.rank5")
    assert Processes.here().device("cpu") == "cpu"


def test_joined_lines_leave_out_what_a_kill_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text("a\n")
    (tmp_path / "m.jsonl.rank1").write_text('b\nc\n{"cut')
    join_lines(file)
    assert file.read_text() == "a\nb\nc\n" and not parts_of(file)


def same_pictures(one: Path, other: Path) -> None:
    assert read_manifest(one) == read_manifest(other)
    for picture in read_manifest(one):
        ours, theirs = (np.asarray(Image.open(folder / picture.file)) for folder in (one, other))
        assert np.array_equal(ours, theirs), picture.index


def test_generation_and_scores_are_those_of_one_process(tiny_sdxl: Path, tmp_path: Path, together: Together) -> None:
    models = {"base": str(tiny_sdxl)}
    alone = generate.run(models, PROMPTS, tmp_path / "alone", **QUICK)
    table = score.run(alone, ["oracle"], tmp_path / "alone", batch_size=2)

    def job(rank: int) -> object:
        folders = generate.run(models, PROMPTS, tmp_path / "shared", **QUICK)
        return score.run(folders, ["oracle"], tmp_path / "shared", batch_size=2)

    tables = together.run(3, job)
    assert all(getattr(one, "rows", one) == table.rows for one in tables), tables
    same_pictures(tmp_path / "alone/base", tmp_path / "shared/base")
    assert (tmp_path / "shared/base" / MANIFEST_FILE).read_text() == (
        tmp_path / "alone/base" / MANIFEST_FILE
    ).read_text()
    assert pq.read_table(tmp_path / "shared/scores.parquet").equals(pq.read_table(tmp_path / "alone/scores.parquet"))
    assert not list((tmp_path / "shared").rglob("*.rank*"))


def test_a_killed_generation_goes_on_with_any_number_of_processes(
    tiny_sdxl: Path, tmp_path: Path, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"base": str(tiny_sdxl)}
    generate.run(models, PROMPTS, tmp_path / "alone", **QUICK)

    def dying(folder: Path, pictures: list) -> None:
        append_to_manifest(folder, pictures)
        if Processes.here().rank == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(generate, "append_to_manifest", dying)
    results = together.run(2, lambda rank: generate.run(models, PROMPTS, tmp_path / "killed", **QUICK))
    assert all(isinstance(result, BaseException) for result in results)
    folder = tmp_path / "killed/base"
    assert len(parts_of(folder / MANIFEST_FILE)) == 2 and read_manifest(folder) == []
    drawn: list[int] = []

    def counting(folder: Path, pictures: list) -> None:
        drawn.extend(picture.index for picture in pictures)
        append_to_manifest(folder, pictures)

    monkeypatch.setattr(generate, "append_to_manifest", counting)
    assert together.run(3, lambda rank: generate.run(models, PROMPTS, tmp_path / "killed", **QUICK))[0]
    assert 0 < len(drawn) < len(PROMPTS) and {2, 3}.isdisjoint(drawn)  # rank 1 had written these
    same_pictures(tmp_path / "alone/base", folder)


class Brightness:
    """A scorer of files that needs no network."""

    name, version, preprocessing = "brightness", "1", "none"
    preprocessors: tuple = (Preprocessor("clip_pil", 8),)  # what has pictures decoded


def test_bulk_scores_are_those_of_one_process(tmp_path: Path, together: Together, monkeypatch) -> None:
    from reward_models import score_files as module

    items = [ScoreItem(f"item-{i}", f"prompt {i}", Image.new("RGB", (4, 4), (i, i, i))) for i in range(11)]
    items[4] = ScoreItem("item-4", "prompt 4", b"rubbish")

    def rows(run, decoded) -> list[dict]:
        identity = {"scorer": "brightness", "version": "1", "preprocessing": "none"}
        return [
            {"id": run.items[one.index].id, "prompt": run.items[one.index].prompt, **identity, "score": one.index / 10}
            for one in decoded
        ]

    monkeypatch.setattr(module, "_score_batch", rows)
    options = {"batch_size": 2, "workers": 0, "part_rows": 2}
    alone = score_files([Brightness()], items, tmp_path / "alone.parquet", **options)  # type: ignore[list-item]

    def job(rank: int, stop: bool = False) -> object:
        def progress(done: int, total: int) -> None:
            if stop and rank == 2:
                raise KeyboardInterrupt

        own = Processes.here()
        share = {"share": (own.rank, own.count), "wait": own.wait, "progress": progress}
        return score_files([Brightness()], items, tmp_path / "shared.parquet", **options, **share)  # type: ignore

    assert any(isinstance(one, KeyboardInterrupt) for one in together.run(3, lambda rank: job(rank, stop=True)))
    assert not (tmp_path / "shared.parquet").exists()
    reports = together.run(2, job)
    failed = [[name for name, _ in getattr(report, "failures", [])] for report in reports]
    assert failed == [[name for name, _ in alone.failures]] * 2 == [["item-4"]] * 2
    assert pq.read_table(tmp_path / "shared.parquet").equals(pq.read_table(tmp_path / "alone.parquet"))


def test_caches_are_those_of_one_process(tmp_path: Path, together: Together) -> None:
    source = write_parquet(tmp_path / "p.parquet", pickapic([1.0] * 9))

    def config(name: str):
        return data_config(source, cache_dir=str(tmp_path / name))

    def latents(name: str) -> torch.Tensor:
        (reader,) = open_cache(config(name), FakeBackbone(), [open_source(config(name))])
        return torch.stack([side.data for index in range(9) for side in reader.read(index, Geometry())])

    build_cache(config("alone"), FakeBackbone())
    together.run(3, lambda rank: build_cache(config("shared"), FakeBackbone(), rank=rank, world_size=3, shard_pairs=2))
    assert torch.equal(latents("shared"), latents("alone"))


def test_real_processes_meet(tiny_sdxl: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS[:4]))
    words = ["generate", f"base={tiny_sdxl}", "--prompts", str(prompts), "--output-dir", str(tmp_path / "shared")]
    words += ["--num-inference-steps", "2", "--guidance-scale", "3", "--batch-size", "1", "--device", "cpu"]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "t2i_align", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("base: ") == 1
    generate.run({"base": str(tiny_sdxl)}, PROMPTS[:4], tmp_path / "alone", **{**QUICK, "batch_size": 1})
    same_pictures(tmp_path / "alone/base", tmp_path / "shared/base")
