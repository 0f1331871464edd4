"""One update of a metric for many batches, where that gives the same state."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
# which take predictions for logits where one of an update lies outside of [0, 1]
_OF_LOGITS_OR_PROBABILITIES = ("Binary", "Multilabel")
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
        found = [metric for _, metric in named_metrics(metrics)]
        doubtful = [m for m in found if type(m).__name__.startswith(_OF_LOGITS_OR_PROBABILITIES)]
        self._is_doubtful = any(map(_is_torchmetrics, doubtful))
        self._to_probabilities = _normalizer() if len(doubtful) == len(found) else None
        if any(getattr(metric, "ignore_index", None) is not None for metric in doubtful):
            self._to_probabilities = None  # they look at what is not ignored

    @staticmethod
    def serves(metrics: Any) -> bool:
        """Tell whether every metric can be updated with joined batches."""
        found = [metric for _, metric in named_metrics(metrics)]
        return bool(found) and all(can_be_joined(metric) for metric in found)

    def add(self, preds: Any, labels: Any, stay: bool = True) -> None:
        """Take one batch; both are kept by reference until the next flush, and no longer.

        Args:
            preds: the net's predictions.
            labels: of the batch.
            stay: nobody writes into the batch's memory; else it is copied.
        """
        if self._is_doubtful and isinstance(preds, torch.Tensor) and preds.is_floating_point():
            probabilities = self._probabilities_of(preds)
            if probabilities is None:
                self.flush()
                update_metrics(self.metrics, preds, labels)
                return
            preds = probabilities
        if not stay:
            preds, labels = _copied(preds), _copied(labels)
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

    def _probabilities_of(self, preds: torch.Tensor) -> torch.Tensor | None:
        """Return what the metrics make of a batch alone; None where joined they make another."""
        if self._to_probabilities is None:
            return None
        found: torch.Tensor = self._to_probabilities(preds, "sigmoid")
        if found.device.type == "cpu" and not bool(((found >= 0) & (found <= 1)).all()):
            return None  # a NaN, for which there the whole update is taken for logits
        return found

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


def _normalizer() -> Callable[..., torch.Tensor] | None:
    compute: Any = sys.modules.get("torchmetrics.utilities.compute")
    return getattr(compute, "normalize_logits_if_needed", None)


def _is_torchmetrics(metric: Any) -> bool:
    return type(metric).__module__.startswith("torchmetrics.")


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


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
