"""An optimiser's state in checkpoints: what is divided among processes apart from the rest, and together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from t2i_align.backbones.pieces import NamedTensors
from t2i_align.training.rows import divided_like, is_divided, span


def apart(state: dict[str, Any], trained: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split ``optimizer.state_dict()`` into what one process writes and ``<parameter>/<entry>`` -> divided tensor.

    Args:
        state: with the parameters in the order of `trained`.
        trained: name -> parameter.
    """
    divided = {
        f"{name}/{entry}": value
        for name, kept in _by_name(state, trained)
        for entry, value in kept.items()
        if is_divided(value)
    }
    if not divided:
        return state, {}
    rest = {
        number: {entry: value for entry, value in kept.items() if not is_divided(value)}
        for number, kept in state["state"].items()
    }
    return {**state, "state": rest}, divided


def restore_optimizer(optimizer: Any, rest: dict[str, Any], divided: NamedTensors, trained: Mapping[str, Any]) -> None:
    """Load what `apart` split, whoever wrote it: of divided parameters this process's rows, of others everything.

    Moments and step counts are taken; rates, betas, decay and epsilon stay as `optimizer` was made.

    Args:
        optimizer: over the parameters of `trained`, in that order.
        rest, divided: the two halves.
        trained: name -> parameter.
    """
    for name, kept in _by_name(rest, trained):
        parameter = trained[name]
        rows = span(parameter)
        for entry, value in kept.items():
            if is_divided(parameter) and isinstance(value, Tensor) and value.shape == parameter.shape:
                kept[entry] = divided_like(value[slice(*rows)], parameter)
    numbers = {name: number for number, name in enumerate(trained)}
    for path in divided.shapes:
        name, _, entry = path.rpartition("/")
        value = divided_like(divided.rows(path, *span(trained[name])), trained[name])
        rest["state"].setdefault(numbers[name], {})[entry] = value
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(rest)
    for group, given in zip(optimizer.param_groups, settings, strict=True):
        group.update(given)  # the state brings the old run's settings along


def restore_schedule(scheduler: LambdaLR, saved: dict[str, Any]) -> None:
    """Go to the step a schedule had reached, and give the optimiser the rate that the present schedule has there.

    Args:
        scheduler: of the present settings; every schedule of ours is a factor for each step.
        saved: state of the one in the checkpoint; of it only the step is taken.
    """
    scheduler.last_epoch, scheduler._step_count = saved["last_epoch"], saved["_step_count"]
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _by_name(state: dict[str, Any], trained: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    names = list(trained)
    return ((names[number], kept) for number, kept in state["state"].items())
