"""Two processes together compute the loss and the gradient of the joined batch."""

import socket
import subprocess
import sys

import torch

WORKER = """
import os, sys, torch, torch.distributed as dist
from reward_models.training.distributed import gather_with_gradient, globally_weighted
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
features = torch.arange(4.0)[2 * rank : 2 * rank + 2].clone().requires_grad_()
everything = gather_with_gradient(features)
(everything.prod() + everything[0] * everything[3]).backward()
weights = torch.tensor([1.0, 2.0]) if rank == 0 else torch.tensor([3.0, 4.0])
share = globally_weighted(weights * 10, weights)
torch.save({"grad": features.grad, "share": share}, f"{folder}/{rank}.pt")
dist.barrier()  # a process that leaves while the other still talks to it makes gloo's threads abort that one
dist.destroy_process_group()
os._exit(0)
"""


def test_two_processes_make_the_global_loss(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    commands = [[sys.executable, "-c", WORKER, str(rank), port, str(tmp_path)] for rank in (0, 1)]
    workers = [subprocess.Popen(command) for command in commands]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    joined = torch.arange(4.0, requires_grad=True)
    (joined.prod() + joined[0] * joined[3]).backward()
    # Each process backpropagates the same global loss; a distributed wrapper divides by the number of processes.
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]) / 2, joined.grad)
    mean = (parts[0]["share"] + parts[1]["share"]) / 2
    torch.testing.assert_close(mean, torch.tensor(10 * (1 + 4 + 9 + 16) / 10.0))
