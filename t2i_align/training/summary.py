"""What a logged step says: means over the global batch, |z| quantiles, implicit accuracy by timestep."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from t2i_align.objectives.types import ObjectiveOutput
from t2i_align.training.metrics import logit_quantiles

TIMESTEP_BINS = 4


class StepSummary:
    """Collects per-pair numbers on the device and turns them into host floats once per logged step.

    Nothing is read back to the host until ``flush``, so logging every n steps costs one synchronisation in n.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._rows: list[torch.Tensor] = []
        self._names: list[str] = []
        self._scalars: dict[str, list[torch.Tensor | float]] = {}

    def add(self, output: ObjectiveOutput, timesteps: torch.Tensor) -> None:
        """Keep one micro-batch: ``[B]`` metrics, scalars, and each pair's timestep as a share of the schedule."""
        per_item = {"loss": output.loss, "timestep": timesteps}
        for name, value in output.metrics.items():
            if value.ndim == 1:
                per_item[name] = value
            else:
                self.add_scalar(name, value)
        self._names = list(per_item)
        self._rows.append(torch.stack([value.detach().float() for value in per_item.values()], dim=1))

    def add_scalar(self, name: str, value: torch.Tensor | float) -> None:
        """Keep a number that already is one per step."""
        self._scalars.setdefault(name, []).append(value.detach() if isinstance(value, torch.Tensor) else value)

    def flush(self) -> dict[str, float]:
        """Means since the last flush, over all processes; every process must call it. Empties the summary."""
        result = self._over_items() if self._rows else {}  # a rollout may have given nothing since the last flush
        for name, kept in self._scalars.items():
            result[name] = sum(float(value) for value in kept) / len(kept)
        self._rows, self._scalars = [], {}
        return result

    def _over_items(self) -> dict[str, float]:
        table = self._accelerator.gather(torch.cat(self._rows)).cpu()
        columns = dict(zip(self._names, table.unbind(1), strict=True))
        timesteps = columns.pop("timestep")
        values = {name: column.mean() for name, column in columns.items()}
        if "logit" in columns:
            values |= logit_quantiles(columns["logit"])
        if "implicit_accuracy" in columns:
            values |= accuracy_by_timestep(columns["implicit_accuracy"], timesteps)
        return {name: float(value) for name, value in values.items()}


def accuracy_by_timestep(accuracy: torch.Tensor, timesteps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean implicit accuracy in equal bins of the schedule; bins without a pair are left out.

    Args:
        accuracy: ``[N]`` in {0, 0.5, 1}.
        timesteps: ``[N]`` as a share of the schedule in [0, 1).
    """
    bins = (timesteps * TIMESTEP_BINS).long().clamp(0, TIMESTEP_BINS - 1)
    return {
        f"implicit_accuracy_by_timestep/{index}_of_{TIMESTEP_BINS}": accuracy[bins == index].mean()
        for index in range(TIMESTEP_BINS)
        if (bins == index).any()
    }
