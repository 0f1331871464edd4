"""Accuracy, precision and recall of two classes, from counts kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hotloop.errors import MetricError
from hotloop.nested import describe_tensor

THRESHOLD = 0.5


class BinaryCounts(nn.Module):
    """The counts behind the binary metrics.

    ``metric(preds, targets)`` adds a batch and returns the batch's own value; ``update`` only
    adds. Nothing waits on the device. k updates give the state of one update on all their
    samples, and counts of several processes may be summed.

    Args:
        from_logits: predictions are logits (torchkeras' convention) and pass a sigmoid; False
            for probabilities in [0, 1]. Positive is a probability of 0.5 or more; NaN is not.
    """

    concatenable = True
    higher_is_better = True
    tp: torch.Tensor
    fp: torch.Tensor
    tn: torch.Tensor
    fn: torch.Tensor

    def __init__(self, from_logits: bool = True) -> None:
        super().__init__()
        self.from_logits = from_logits
        for name in ("tp", "fp", "tn", "fn"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, preds: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch.

        Args:
            preds: scores, any float dtype, of any shape.
            targets: labels 0 and 1, any dtype, of the same shape but for dimensions of size 1.

        Raises:
            MetricError: the shapes differ; names both.
        """
        self._add(self._count(preds, targets))

    @torch.no_grad()
    def forward(self, preds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Add a batch and return its own value, float32 of 0 dimensions."""
        counts = self._count(preds, targets)
        self._add(counts)
        return self._value(*counts)

    def compute(self) -> torch.Tensor:
        """Return the value over all batches since ``reset``, float32 of 0 dimensions."""
        return self._value(self.tp, self.fp, self.tn, self.fn)

    def reset(self) -> None:
        """Forget all batches."""
        for count in (self.tp, self.fp, self.tn, self.fn):
            count.zero_()

    def _count(self, preds: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores, truth = flatten_pair(preds, targets)
        positive = to_probabilities(scores, self.from_logits) >= THRESHOLD
        true_positive = (positive & truth).sum()
        false_positive = (positive & ~truth).sum()
        false_negative = (~positive & truth).sum()
        true_negative = scores.numel() - true_positive - false_positive - false_negative
        return true_positive, false_positive, true_negative, false_negative

    def _add(self, counts: tuple[torch.Tensor, ...]) -> None:
        for total, count in zip((self.tp, self.fp, self.tn, self.fn), counts, strict=True):
            total += count

    def _value(
        self, tp: torch.Tensor, fp: torch.Tensor, tn: torch.Tensor, fn: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError


class Accuracy(BinaryCounts):
    """The share of samples on the right side: (TP + TN) / all. NaN before the first sample."""

    def _value(
        self, tp: torch.Tensor, fp: torch.Tensor, tn: torch.Tensor, fn: torch.Tensor
    ) -> torch.Tensor:
        return (tp + tn) / (tp + fp + tn + fn)


class Precision(BinaryCounts):
    """TP / (TP + FP); 0 where nothing was predicted positive, as scikit-learn's default."""

    def _value(
        self, tp: torch.Tensor, fp: torch.Tensor, tn: torch.Tensor, fn: torch.Tensor
    ) -> torch.Tensor:
        del tn, fn
        return tp / (tp + fp).clamp(min=1)


class Recall(BinaryCounts):
    """TP / (TP + FN); 0 where no sample is positive, as scikit-learn's default."""

    def _value(
        self, tp: torch.Tensor, fp: torch.Tensor, tn: torch.Tensor, fn: torch.Tensor
    ) -> torch.Tensor:
        del fp, tn
        return tp / (tp + fn).clamp(min=1)


def flatten_pair(preds: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores float (n,) and truth bool (n,) of one batch.

    Raises:
        MetricError: no tensors, or their shapes differ by more than dimensions of size 1.
    """
    check_tensors(preds, targets)
    if shape_without_ones(preds) != shape_without_ones(targets):
        raise MetricError(
            f"predictions {describe_tensor(preds)} and labels {describe_tensor(targets)} differ "
            f"in shape: a binary metric takes one score for each label."
        )
    scores = preds.reshape(-1)
    if scores.dtype in (torch.float16, torch.bfloat16) or not scores.is_floating_point():
        scores = scores.float()
    return scores, targets.reshape(-1) >= THRESHOLD


def to_probabilities(scores: torch.Tensor, from_logits: bool) -> torch.Tensor:
    """Return scores as probabilities."""
    return scores.sigmoid() if from_logits else scores


def check_tensors(preds: Any, targets: Any) -> None:
    """Raise MetricError unless both are tensors."""
    if not isinstance(preds, torch.Tensor) or not isinstance(targets, torch.Tensor):
        raise MetricError(
            f"a metric got {type(preds).__name__} and {type(targets).__name__}: pass tensors."
        )


def shape_without_ones(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the dimensions other than 1: of (n, 1), (1, n) and (n,) it is the same.

    Shapes that agree here hold their values in the same order.
    """
    return tuple(size for size in tensor.shape if size != 1)
