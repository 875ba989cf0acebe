"""Several training processes that share one import: forked from a server that has everything loaded."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["t2i_align.training.run", "t2i_align.evaluation.sampling", "t2i_align.export.run"])
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def train_together(runs: list[dict], folder: Path, count: int = 2, **environment: str) -> None:
    """Train one run after another on `count` CPU processes over gloo, in the launcher's `environment`.

    A run may have an ``environment`` too, from then on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    logs = [folder / f"process-{rank}.log" for rank in range(count)]
    arguments = [(runs, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, logs[rank]) for rank in range(count)]
    workers = [SERVER.Process(target=_work, args=given) for given in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=600)
    assert [worker.exitcode for worker in workers] == [0] * count, "\n".join(log.read_text() for log in logs)


def _work(runs: list[dict], environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment)
    with log.open("w") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
        try:
            _train(runs)
        except BaseException:
            traceback.print_exc(file=stream)
            stream.flush()
            os._exit(1)  # the others wait in a collective; they end when this one is gone
        stream.flush()
        os._exit(0)


def _train(runs: list[dict]) -> None:
    import torch
    from accelerate.state import AcceleratorState

    from t2i_align.config.schema import RunConfig
    from t2i_align.training.run import train

    torch.set_num_threads(1)
    for run in runs:
        settings = dict(run)
        os.environ.update(settings.pop("environment", {}))
        train(RunConfig.model_validate(settings))
        AcceleratorState._reset_state(reset_partial_state=False)
