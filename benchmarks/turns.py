"""Runs a training script one optimiser step at a time, on command: the child's side of `training_step.py`.

    python benchmarks/turns.py SCRIPT ARGUMENTS...

Nothing of the script is changed or known. A hook after every optimiser step reports the step on one pipe and waits for
the next letter on another: s, make a step; m, make one and count the tensors it holds; f, replay the step's bare UNet
passes; q, leave. The replay repeats the calls of the last step on the very same inputs, with a backward pass where the
script made one, and adapters off where they were: nothing but the network, in the script's own process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.machinery
import importlib.util
import json
import os
import resource
import runpy
import sys
import time
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from t2i_align.training.meter import Meter

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)
LISTEN, SPEAK = "TURNS_LISTEN", "TURNS_SPEAK"  # file descriptors


@dataclass
class Call:
    """One call of a denoiser."""

    network: torch.nn.Module
    args: tuple
    kwargs: dict[str, Any]
    trains: bool
    adapters: bool | None


class Turns:
    """Answers letters between optimiser steps."""

    def __init__(self) -> None:
        self._listen, self._speak = int(os.environ[LISTEN]), int(os.environ[SPEAK])
        self._calls: list[Call] = []
        self._watched: dict[torch.nn.Module, list[Any]] = {}  # denoiser -> its adapted layers
        self._replaying = False
        self._wall = self._cpu = 0.0
        self._meter: Meter | None = None
        self._held_before = 0

    def after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Report the step, then do what is asked until another step is."""
        _synchronise()
        report = {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu, **_memory()}
        if self._meter is not None:
            self._meter.__exit__(None, None, None)
            report["tensors"] = (self._held_before + self._meter.peak) / 1e6
            self._meter = None
        self._say(**report)
        if not self._watched:
            self._watch()
        while (letter := os.read(self._listen, 1).decode()) not in ("s", "m"):
            if letter != "f":
                os._exit(0)
            self._floor(optimizer)
        self._calls.clear()
        if letter == "m":
            self._count()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _count(self) -> None:
        """Count the bytes of all tensors there are, and from now on of those that are made."""
        held = {}
        for thing in gc.get_objects():
            # by type: isinstance trips over dead weak references; neither meta nor a compiler's fake tensors hold bytes
            if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type != "meta":
                storage = thing.untyped_storage()
                held[storage._cdata] = (storage.nbytes(), thing)
        self._held_before = sum(size for size, _ in held.values())
        self._meter = Meter(thing for _, thing in held.values())
        self._meter.__enter__()

    def _floor(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        wall, cpu = time.perf_counter(), time.process_time()
        self._replaying = True
        for call in self._calls:
            self._replay(call)
        self._replaying = False
        _synchronise()
        self._say(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, calls=len(self._calls))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def _replay(self, call: Call) -> None:
        layers = self._watched[call.network]
        before = _adapters_on(layers)
        _switch(layers, call.adapters)
        with torch.set_grad_enabled(call.trains):
            output = call.network(*call.args, **call.kwargs)
            if call.trains:
                prediction = output[0] if isinstance(output, tuple) else output.sample
                prediction.float().square().mean().backward()
        _switch(layers, before)

    def _watch(self) -> None:
        """Note the calls of every denoiser there is from now on."""
        from diffusers import UNet2DConditionModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        for network in gc.get_objects():
            if issubclass(type(network), UNet2DConditionModel):  # see _count
                self._watched[network] = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
                network.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if not self._replaying:
            adapters = _adapters_on(self._watched[network])
            self._calls.append(Call(network, args, kwargs, torch.is_grad_enabled(), adapters))

    def _say(self, **values: Any) -> None:
        os.write(self._speak, (json.dumps(values) + "\n").encode())


def _adapters_on(layers: list[Any]) -> bool | None:
    """None for a network without adapters."""
    return not layers[0].disable_adapters if layers else None


def _switch(layers: list[Any], on: bool | None) -> None:
    if on != _adapters_on(layers):
        for layer in layers:
            layer.enable_adapters(on)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory() -> dict[str, float]:
    """Peak memory so far in MB: of the process, and allocated on the GPU."""
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
    return {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024, "gpu": gpu}


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, as GPU allocators do; without effect elsewhere.

    Steps keep most of it anyway, because what lies beyond it stays; a floor that gave it back would pay page faults
    that steps do not.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 32 * 2**20)


def _stand_in(name: str) -> None:
    """An empty module for a tracker that a script imports and these runs never use."""
    if importlib.util.find_spec(name) is None:
        import accelerate  # noqa: F401 - it looks for trackers once, and must not find this one

        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module


if __name__ == "__main__":
    _keep_freed_memory()
    register_optimizer_step_post_hook(Turns().after_step)
    _stand_in("wandb")
    del sys.argv[0]
    if sys.argv[0] == "t2i_align":
        runpy.run_module("t2i_align", run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
