"""Epoch averages without waiting on the device, and the state of metric objects."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hotloop.errors import MetricError
from hotloop.memory import is_out_of_memory, out_of_memory
from hotloop.metrics.functions import FunctionMetric
from hotloop.metrics.refused import refusal
from hotloop.placement import explain_device_error

_CHUNK = 1024  # step losses a device buffer holds; 4 KiB, read in one copy
MAX_HELD_LOSSES = 32  # on a device, before they are put into a buffer together; divides _CHUNK


class LossLog:
    """The losses of one epoch's steps, and their average over samples.

    The average weights each batch's loss with its number of samples, so that a short last batch
    counts for what it holds: ``sum(n_i * loss_i) / sum(n_i)``, summed in float64 in step order,
    which is bitwise what a loop with ``total += loss.item() * n`` computes.

    On a CPU a loss is read at once (nothing is pending there); on an accelerator it is held, put
    into a buffer on the device with others, and read in one go when somebody asks for ``values``.
    """

    def __init__(self) -> None:
        self.num_samples: list[int] = []
        self._host: list[float] = []
        self._chunks: list[torch.Tensor] = []
        self._num_pending = 0  # in the chunks
        self._held: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self.num_samples)

    def append(self, loss: torch.Tensor | float, num_samples: int, stays: bool = False) -> None:
        """Add one step's loss.

        Args:
            loss: 0 dimensions, any float dtype.
            num_samples: that it is the mean of.
            stays: nobody writes into it for the next ``MAX_HELD_LOSSES`` steps.
        """
        self.num_samples.append(num_samples)
        if not isinstance(loss, torch.Tensor):
            self._host.append(float(loss))
        elif loss.device.type == "cpu":
            self._host.append(loss.item())
        else:
            self._hold(loss.detach() if stays else loss.detach().clone())

    def load(self, values: list[float], num_samples: list[int]) -> None:
        """Take over the losses of steps that were done before, in the place of those here."""
        self._host, self.num_samples = list(values), list(num_samples)
        self._chunks, self._num_pending, self._held = [], 0, []

    def values(self) -> list[float]:
        """Return the loss of every step so far; on an accelerator this waits for them."""
        self._write_held()
        if self._num_pending:
            # sync: one copy for up to 1024 steps, at a boundary the caller chose
            pending = torch.cat(self._chunks)[: self._num_pending]
            return self._host + [float(value) for value in pending.tolist()]
        return self._host

    def drop_nan(self) -> None:
        """Leave out the steps whose loss is NaN."""
        pairs = zip(self.values(), self.num_samples, strict=True)
        kept = [(value, weight) for value, weight in pairs if not math.isnan(value)]
        self.load([value for value, _ in kept], [weight for _, weight in kept])

    def mean(self) -> float:
        """Return the average over samples so far; NaN before the first step."""
        return weighted_mean(self.values(), self.num_samples)

    def pending(self) -> torch.Tensor | None:
        """Return the newest chunk's filled part on the device, None when nothing is there."""
        self._write_held()
        if not self._num_pending:
            return None
        used = (self._num_pending - 1) % _CHUNK + 1
        return self._chunks[-1][:used]

    def _hold(self, loss: torch.Tensor) -> None:
        self._held.append(loss)
        if len(self._held) >= MAX_HELD_LOSSES:
            self._write_held()

    def _write_held(self) -> None:
        while self._held:
            first, start = self._held[0], self._num_pending % _CHUNK
            if start == 0:
                dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
                self._chunks.append(torch.empty(_CHUNK, dtype=dtype, device=first.device))
            losses, self._held = self._held[: _CHUNK - start], self._held[_CHUNK - start :]
            self._chunks[-1][start : start + len(losses)].copy_(torch.stack(losses))
            self._num_pending += len(losses)


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Return ``sum(w_i * v_i) / sum(w_i)`` in float64, in order; NaN without any weight."""
    total, count = 0.0, 0
    for value, weight in zip(values, weights, strict=True):
        if not weight:
            continue  # the mean over no samples is NaN
        total += value * weight
        count += weight
    return total / count if count else math.nan


def first_non_finite(values: Sequence[float]) -> int | None:
    """Return the index of the first NaN or infinity, None when all are finite."""
    return next((i for i, value in enumerate(values) if not math.isfinite(value)), None)


def check_metrics(metrics: Any) -> nn.ModuleDict:
    """Return the user's metrics as a module of named metrics.

    Args:
        metrics: None, a mapping of names to metrics, or a torchmetrics ``MetricCollection``.
            A metric is an ``nn.Module`` with ``compute`` and ``reset`` that is called with
            ``(predictions, labels)``, or a function of all predictions and labels of an epoch.

    Raises:
        MetricError: not such a mapping, or a metric lacks a method; the message names it.
    """
    if metrics is None:
        return nn.ModuleDict()
    if isinstance(metrics, nn.ModuleDict) and hasattr(metrics, "compute"):
        return metrics  # a MetricCollection: one object that knows its names
    if not isinstance(metrics, Mapping | nn.ModuleDict):
        raise MetricError(
            f"metrics_dict is a {type(metrics).__name__}: pass a dict of names to metrics, for "
            f"instance {{'acc': Accuracy(task='multiclass', num_classes=10)}}."
        )
    found = {
        name: FunctionMetric(metric) if _is_function(metric) else metric
        for name, metric in metrics.items()
    }
    for name, metric in found.items():
        lacking = [m for m in ("compute", "reset") if not callable(getattr(metric, m, None))]
        if isinstance(metric, type):
            raise MetricError(
                f"metric '{name}' is the class {metric.__name__}, not an object of it: "
                f"write {metric.__name__}(...)."
            )
        if lacking or not isinstance(metric, nn.Module):
            what = f"has no {' and no '.join(lacking)}" if lacking else "is no nn.Module"
            raise MetricError(
                f"metric '{name}' ({type(metric).__name__}) {what}: a metric is an nn.Module "
                f"with forward(preds, labels), compute() and reset(), as torchmetrics' are, or a "
                f"function of all predictions and labels of an epoch."
            )
    return nn.ModuleDict(found)


def _is_function(metric: Any) -> bool:
    return inspect.isroutine(metric) or isinstance(metric, functools.partial)


def update_metrics(metrics: nn.Module, preds: Any, labels: Any) -> None:
    """Add one batch to every metric's state; nothing is read from the device.

    Args:
        metrics: what ``check_metrics`` returned.
        preds: the net's predictions, detached, float32 where they were half precision.
        labels: as the batch held them.

    Raises:
        MetricError: a metric refuses these tensors; names it and their shapes and dtypes.
    """
    for name, metric in named_metrics(metrics):
        try:
            if callable(getattr(metric, "update", None)):
                metric.update(preds, labels)
            else:
                metric(preds, labels)
        except (AttributeError, KeyError) as error:
            if isinstance(preds, torch.Tensor) and isinstance(labels, torch.Tensor):
                raise  # a mistake in the metric's own code
            raise refusal(name, metric, preds, labels, error) from error
        except (
            ValueError,
            RuntimeError,
            TypeError,
            IndexError,
            AssertionError,
            MemoryError,
        ) as error:
            _tell_of_memory(name, metric, error)
            misplaced = explain_device_error(error, metric=metric, preds=preds, labels=labels)
            if misplaced is not None:
                raise misplaced from error
            raise refusal(name, metric, preds, labels, error) from error


def compute_metrics(metrics: nn.Module, prefix: str) -> dict[str, Any]:
    """Return every metric's value so far, named ``{prefix}_{name}``.

    Scalars become floats, tensors of several values lists. A metric that computes a mapping
    gives one entry for each of its names. This reads from the device.
    """
    values: dict[str, Any] = {}
    for name, metric in named_metrics(metrics):
        try:
            value = metric.compute()
        except (RuntimeError, MemoryError) as error:
            _tell_of_memory(name, metric, error)
            raise
        if isinstance(value, Mapping):
            for part, part_value in value.items():
                label = f"{name}_{part}" if name else str(part)
                values[f"{prefix}_{label}"] = to_host(part_value)
        else:
            values[f"{prefix}_{name}"] = to_host(value)
    return values


def _tell_of_memory(name: str, metric: Any, error: Exception) -> None:
    """Raise an error that names the metric, where memory ran out in it.

    Raises:
        OutOfMemoryError: likewise.
    """
    if not is_out_of_memory(error):
        return
    mend = "leave it out, or use one that keeps sums and not every prediction"
    if hasattr(metric, "thresholds"):
        mend = "give it thresholds=200, so that it keeps counts and not every prediction"
    what = f"memory ran out in metric '{name}' ({type(metric).__name__})"
    raise out_of_memory(what, error, mend) from error


def metric_names(metrics: nn.Module) -> list[str] | None:
    """Return the names ``compute_metrics`` will give, without prefix; None if only it can tell."""
    if hasattr(metrics, "compute"):
        return [str(name) for name in metrics.keys()]  # type: ignore[operator]  # noqa: SIM118
    names: list[str] = []
    for name, metric in named_metrics(metrics):
        if isinstance(metric, nn.ModuleDict):
            return None
        names.append(name)
    return names


def reset_metrics(metrics: nn.Module) -> None:
    """Return every metric to its initial state."""
    for _, metric in named_metrics(metrics):
        metric.reset()


def named_metrics(metrics: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, metric)``; a collection passed as a whole is one metric without a name."""
    if hasattr(metrics, "compute"):
        yield "", metrics
    else:
        yield from metrics.items()  # type: ignore[operator]


def has_cheap_compute(metric: Any) -> bool:
    """Tell whether ``compute`` may be called for the bar, in the middle of an epoch.

    Only torchmetrics promise a compute without side effects; those that keep every sample to
    compute from are left out, for that would cost more with every step.
    """
    torchmetrics = sys.modules.get("torchmetrics")  # not imported: then this is none of its
    if torchmetrics is None or not isinstance(metric, torchmetrics.Metric):
        return False
    return not any(isinstance(default, list) for default in metric._defaults.values())


def to_host(value: Any) -> Any:
    """Return a metric's value as a float, or as a (nested) list where it has several."""
    if isinstance(value, torch.Tensor):
        # sync: metrics are computed at the end of a stage, or when the bar asks
        return float(value) if value.numel() == 1 else value.tolist()
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        return float(value)
    return value
