"""One update of a metric for many batches, where that gives the same state."""

from __future__ import annotations

import sys
from typing import Any

import torch

from hotloop.errors import MetricError
from hotloop.metrics.accumulate import named_metrics, update_metrics

# torchmetrics whose state is counts of samples, or the samples themselves in order: adding k
# batches one by one, or joined, gives bitwise the same. Exact types; subclasses may differ.
_STAT_SCORES = ("Accuracy", "Precision", "Recall", "F1Score", "FBetaScore", "Specificity")
_COUNTING = tuple(
    f"{task}{name}"
    for task in ("Binary", "Multiclass", "Multilabel")
    for name in (*_STAT_SCORES, "StatScores")
)
_CONFUSION = tuple(
    f"{task}{name}"
    for task in ("Binary", "Multiclass", "Multilabel")
    for name in ("ConfusionMatrix", "JaccardIndex")
)
MAX_HELD_BATCHES = 64
_MAX_VALUES = 1 << 20


def can_be_joined(metric: Any) -> bool:
    """Tell whether one update on joined batches gives the state of an update for each."""
    if getattr(type(metric), "concatenable", False) and type(metric).__module__.startswith(
        "hotloop.metrics."
    ):
        return True
    classification: Any = sys.modules.get("torchmetrics.classification")
    name = type(metric).__name__
    if classification is None or type(metric) is not getattr(classification, name, None):
        return False
    if name in _COUNTING:
        return getattr(metric, "multidim_average", "global") == "global"
    return name in _CONFUSION


class BatchedUpdates:
    """Holds predictions and labels back, and gives them to the metrics joined.

    Predictions and labels have the samples as their first dimension. Whoever reads the metrics
    calls ``flush`` before.

    Args:
        metrics: all of which ``can_be_joined``.
    """

    def __init__(self, metrics: Any) -> None:
        self.metrics = metrics
        self._preds: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._versions: list[tuple[int, int]] = []
        self._num_values = 0
        self._seen_one = False

    @staticmethod
    def serves(metrics: Any) -> bool:
        """Tell whether every metric can be updated with joined batches."""
        found = [metric for _, metric in named_metrics(metrics)]
        return bool(found) and all(can_be_joined(metric) for metric in found)

    def add(self, preds: Any, labels: Any) -> None:
        """Take one batch; both are kept by reference until the next flush, and no longer."""
        usual = (
            self._preds and _is_like(preds, self._preds[0]) and _is_like(labels, self._labels[0])
        )
        if not usual and not self._accepts(preds, labels):
            # at once; metrics may keep what they are given, which is not promised to stay as it is
            update_metrics(self.metrics, _copied(preds), labels)
            return
        self._preds.append(preds)
        self._labels.append(labels)
        self._versions.append((preds._version, labels._version))
        self._num_values += preds.numel()
        if len(self._preds) >= MAX_HELD_BATCHES or self._num_values >= _MAX_VALUES:
            self.flush()

    def _accepts(self, preds: Any, labels: Any) -> bool:
        """Tell whether a batch may be held back, with those that are held or after them.

        The first is not: what a metric refuses is refused there.
        """
        if not (_joins(preds, self._preds) and _joins(labels, self._labels)):
            self.flush()
        seen_one, self._seen_one = self._seen_one, True
        return seen_one and _has_samples(preds) and _has_samples(labels)

    def flush(self) -> None:
        """Update the metrics with what is held back."""
        if not self._preds:
            return
        pairs = zip(self._preds, self._labels, strict=True)
        if self._versions != [(preds._version, labels._version) for preds, labels in pairs]:
            raise MetricError(
                "predictions or labels of an earlier step were changed in place before the "
                "metrics saw them: return new tensors from the net, or pass exact=True to fit."
            )
        preds, labels = torch.cat(self._preds), torch.cat(self._labels)
        self._preds, self._labels, self._versions, self._num_values = [], [], [], 0
        update_metrics(self.metrics, preds, labels)


def _copied(preds: Any) -> Any:
    return preds.clone() if isinstance(preds, torch.Tensor) else preds


def _is_like(value: Any, first: torch.Tensor) -> bool:
    return bool(
        isinstance(value, torch.Tensor)
        and value.shape == first.shape
        and value.dtype == first.dtype
        and value.device == first.device
    )


def _has_samples(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _joins(value: Any, held: list[torch.Tensor]) -> bool:
    if not held or not _has_samples(value):
        return not held
    first = held[0]
    return bool(
        value.shape[1:] == first.shape[1:]
        and value.dtype == first.dtype
        and value.device == first.device
    )
