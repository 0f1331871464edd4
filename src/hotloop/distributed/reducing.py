"""Averages and metrics over all processes' samples."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hotloop.distributed.group import collective_device, from_all_processes
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


def average_gradients(parameters: Sequence[torch.Tensor], device: torch.device) -> None:
    """Replace gradients by their averages over processes.

    Averages stay what they are when they are averaged again; a parameter that has no gradient in
    any process keeps none.

    Args:
        parameters: the same in all processes.
        device: of this process.
    """
    if not parameters:
        return
    given = torch.tensor([float(p.grad is not None) for p in parameters])
    numbers = sum_across(given.to(collective_device(device))).tolist()
    for parameter, number in zip(parameters, numbers, strict=True):
        if not number:
            continue
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = sum_across(grad.to_dense() if grad.is_sparse else grad) / world_size()


def differing(named: Sequence[tuple[str, torch.Tensor]], device: torch.device) -> list[str]:
    """Return the names of the tensors that are not the same in all processes.

    Args:
        named: names and tensors, the same ones in all processes.
        device: of this process.
    """
    plain = [torch.view_as_real(t) if t.is_complex() else t for _, t in named]
    sums = [(t.detach().double().sum(), t.detach().double().abs().sum()) for t in plain]
    if not sums:
        return []
    own = torch.stack([torch.stack(pair) for pair in sums]).to(collective_device(device))
    own = own.nan_to_num()
    least, most = own.clone(), own.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    # processors of different kinds may add the same numbers up a little differently
    apart = ((most - least) > 1e-9 * most[:, 1:].clamp(min=1e-30)).any(dim=1)
    return [name for (name, _), is_apart in zip(named, apart.tolist(), strict=True) if is_apart]


class SharedMetrics:
    """Metrics whose state is added up over processes when their epoch's value is asked for.

    torchmetrics do that by themselves; until then they have to be kept apart, for the bar shows
    one process' running values, at a time of its own. A module with
    ``sums_across_processes = True`` has its buffers added up, and its lists of tensors gathered.

    Args:
        metrics: what ``check_metrics`` returned.
    """

    def __init__(self, metrics: nn.Module) -> None:
        self.metrics = metrics
        self._torchmetrics = list(_torchmetrics_in(metrics))
        self._own = [m for m in metrics.modules() if _sums_across(m)]

    @contextlib.contextmanager
    def kept_apart(self) -> Iterator[None]:
        """Return to how they were after the block, in which each process has its own values."""
        before = [(m, m.sync_on_compute, m._to_sync) for m in self._torchmetrics]
        self._stay_apart(True)
        try:
            yield
        finally:
            for metric, on_compute, to_sync in before:
                metric.sync_on_compute, metric._to_sync = on_compute, to_sync

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Make ``compute`` in the block that of all processes; the state is reset afterwards."""
        self._stay_apart(False)
        try:
            self._merge_own()
            yield
        finally:
            self._stay_apart(True)

    def _merge_own(self) -> None:
        for metric in self._own:
            for buffer in metric.buffers(recurse=False):
                dist.all_reduce(buffer)
        rows = [_rows_in(metric) for metric in self._own]
        if not rows:
            return
        # some processes may have found nothing to add, and gather nothing by themselves
        forms = [
            {name: (r.dtype, r.shape[1:], r.device.type) for name, r in own.items()} for own in rows
        ]
        for found in from_all_processes(forms):
            for own, form in zip(rows, found, strict=True):
                for name, (dtype, shape, device) in form.items():
                    own.setdefault(name, torch.empty((0, *shape), dtype=dtype, device=device))
        for metric, own in zip(self._own, rows, strict=True):
            for name in sorted(own):  # in the same order everywhere
                setattr(metric, name, [gather_rows(own[name])])

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


def _rows_in(metric: nn.Module) -> dict[str, torch.Tensor]:
    """Return the lists of tensors that a metric keeps, each joined, by name."""
    return {
        name: torch.cat(value)
        for name, value in vars(metric).items()
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor)
    }


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
