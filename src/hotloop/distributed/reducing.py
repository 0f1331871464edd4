"""Averages and metrics over all processes' samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hotloop.distributed.group import collective_device
from hotloop.distributed.processes import sum_across, world_size
from hotloop.errors import MetricError


def mean_across(
    pairs: Sequence[tuple[Sequence[float], Sequence[int]]], device: torch.device
) -> list[float]:
    """Return weighted means over all processes: ``sum(w * v) / sum(w)`` in float64.

    Args:
        pairs: for each mean, this process' values and their weights.
        device: of this process.

    Returns:
        The means, bitwise the same in every process; NaN where all weights are 0.
    """
    totals = torch.zeros(len(pairs), 2, dtype=torch.float64)
    for row, (values, weights) in zip(totals, pairs, strict=True):
        for value, weight in zip(values, weights, strict=True):
            row[0] += value * weight
        row[1] = sum(weights)
    totals = sum_across(totals.to(collective_device(device))).cpu()
    return [float(mean) for mean in totals[:, 0] / totals[:, 1]]


class SharedMetrics:
    """Metrics whose state is added up over processes when their epoch's value is asked for.

    torchmetrics do that by themselves; until then they are told to stay apart, for the bar shows
    one process' running values. A module with ``sums_across_processes = True`` has its buffers
    added up, and its lists of tensors gathered.

    Args:
        metrics: what ``check_metrics`` returned.
    """

    def __init__(self, metrics: nn.Module) -> None:
        self.metrics = metrics
        self._torchmetrics = list(_torchmetrics_in(metrics))
        self._own = [m for m in metrics.modules() if _sums_across(m)]
        self._stay_apart(True)

    def merge(self) -> None:
        """Make the next ``compute`` that of all processes; the state is reset afterwards."""
        self._stay_apart(False)
        for metric in self._own:
            for buffer in metric.buffers(recurse=False):
                dist.all_reduce(buffer)
            for name, value in vars(metric).items():
                if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
                    setattr(metric, name, [gather_rows(torch.cat(value))])

    def part(self) -> None:
        """Keep the processes' states apart again."""
        self._stay_apart(True)

    def _stay_apart(self, apart: bool) -> None:
        for metric in self._torchmetrics:
            metric.sync_on_compute = metric._to_sync = not apart
            metric._computed = None  # the bar's value, of one process


def check_metrics_can_be_shared(named_metrics: Iterator[tuple[str, Any]]) -> None:
    """Refuse metrics whose state nobody knows how to add up.

    Raises:
        MetricError: names the metric.
    """
    for name, metric in named_metrics:
        known = any(True for _ in _torchmetrics_in(metric))
        if not known and not _sums_across(metric):
            raise MetricError(
                f"metric '{name}' ({type(metric).__name__}) keeps a state that several processes "
                f"cannot add up: derive it from torchmetrics.Metric, or keep sums in buffers and "
                f"give its class sums_across_processes = True."
            )


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, in their order; processes may have different numbers.

    Args:
        rows: (n, ...), where the group can send from.
    """
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    sizes = [int(size) for size in sum_across(counts).tolist()]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    shares = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(shares, padded)
    return torch.cat([share[:size] for share, size in zip(shares, sizes, strict=True)])


def _sums_across(metric: Any) -> bool:
    of_hotloop = type(metric).__module__.startswith("hotloop.metrics.")
    return bool(
        getattr(metric, "sums_across_processes", of_hotloop and isinstance(metric, nn.Module))
    )


def _torchmetrics_in(metrics: Any) -> Iterator[Any]:
    torchmetrics = sys.modules.get("torchmetrics")  # not imported: then none of these is its
    if torchmetrics is None or not isinstance(metrics, nn.Module):
        return
    for module in metrics.modules():
        if isinstance(module, torchmetrics.Metric):
            yield module
