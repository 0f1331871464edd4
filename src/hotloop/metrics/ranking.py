"""AUC and KS of two classes: how well scores rank positives above negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

from hotloop.errors import SettingsError
from hotloop.metrics.binary import flatten_pair, to_probabilities


class _Ranking(nn.Module):
    """Keeps what the ROC curve needs.

    Exact by default: every score is kept on its device, 5 bytes a sample in float32. With
    ``num_bins`` the probabilities are counted in that many equal bins (torchkeras' way, with
    10,001): constant memory, and the value is that of scores rounded down to the bins.

    The value is NaN while only one class was seen, or nothing, and where a score is NaN.

    k updates give the state of one update on all their samples; bins of several processes may be
    summed, scores concatenated.

    Args:
        from_logits: predictions are logits; False for probabilities in [0, 1]. Only the bins
            need to know: the exact value depends on the order of the scores alone.
        num_bins: count in bins, 2 or more, instead of keeping the scores.

    Raises:
        SettingsError: num_bins is no integer of 2 or more.
    """

    concatenable = True
    higher_is_better = True
    positives: torch.Tensor
    negatives: torch.Tensor

    def __init__(self, from_logits: bool = True, num_bins: int | None = None) -> None:
        super().__init__()
        if num_bins is not None and (not isinstance(num_bins, int) or num_bins < 2):
            raise SettingsError(
                f"num_bins is {num_bins!r}: pass an integer of 2 or more, or None to be exact."
            )
        self.from_logits, self.num_bins = from_logits, num_bins
        self._scores: list[torch.Tensor] = []
        self._truth: list[torch.Tensor] = []
        for name in ("positives", "negatives"):
            # one more: the scores that are NaN
            counts = torch.zeros(num_bins + 1 if num_bins else 0, dtype=torch.int64)
            self.register_buffer(name, counts, persistent=False)

    @torch.no_grad()
    def update(self, preds: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch.

        Args:
            preds: scores, any float dtype, of any shape.
            targets: labels 0 and 1, any dtype, of the same shape but for dimensions of size 1.

        Raises:
            MetricError: the shapes differ; names both.
        """
        scores, truth = flatten_pair(preds, targets)
        if self.num_bins is None:
            self._keep(scores, truth)
        else:
            self._add(*self._histogram(scores, truth, self.num_bins))

    @torch.no_grad()
    def forward(self, preds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Add a batch and return its own value, float32 of 0 dimensions."""
        scores, truth = flatten_pair(preds, targets)
        if self.num_bins is None:
            self._keep(scores, truth)
            return self._value(*rates_of_scores(scores, truth))
        counts = self._histogram(scores, truth, self.num_bins)
        self._add(*counts)
        return self._value(*rates_of_bins(*counts))

    @torch.no_grad()
    def compute(self) -> torch.Tensor:
        """Return the value since ``reset``, float32 of 0 dimensions."""
        if self.num_bins is not None:
            return self._value(*rates_of_bins(self.positives, self.negatives))
        if not self._scores:
            return torch.tensor(torch.nan, device=self.positives.device)
        return self._value(*rates_of_scores(torch.cat(self._scores), torch.cat(self._truth)))

    def reset(self) -> None:
        """Forget all batches."""
        self._scores, self._truth = [], []
        self.positives.zero_()
        self.negatives.zero_()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move the kept scores too, where ``to`` and its kin move the module."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.positives.device
        self._scores = [scores.to(device) for scores in self._scores]
        self._truth = [truth.to(device) for truth in self._truth]
        return self

    def _keep(self, scores: torch.Tensor, truth: torch.Tensor) -> None:
        self._scores.append(scores.clone())  # the caller may change its tensor afterwards
        self._truth.append(truth)

    def _add(self, positives: torch.Tensor, negatives: torch.Tensor) -> None:
        self.positives += positives
        self.negatives += negatives

    def _histogram(
        self, scores: torch.Tensor, truth: torch.Tensor, num_bins: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = to_probabilities(scores, self.from_logits)
        bins = (probabilities * (num_bins - 1)).clamp(0, num_bins - 1)
        bins = torch.where(probabilities.isnan(), num_bins, bins).long()
        counts = torch.zeros(2, num_bins + 1, dtype=torch.int64, device=scores.device)
        counts[0].scatter_add_(0, bins, truth.long())
        counts[1].scatter_add_(0, bins, (~truth).long())
        return counts[0], counts[1]

    def _value(self, true_rates: torch.Tensor, false_rates: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class AUC(_Ranking):
    """The area under the ROC curve, by trapezoids, ties as in scikit-learn's ``roc_auc_score``."""

    def _value(self, true_rates: torch.Tensor, false_rates: torch.Tensor) -> torch.Tensor:
        return torch.trapezoid(true_rates, false_rates).float()


class KS(_Ranking):
    """The Kolmogorov-Smirnov statistic: the largest gap of true and false positive rates."""

    def _value(self, true_rates: torch.Tensor, false_rates: torch.Tensor) -> torch.Tensor:
        return (true_rates - false_rates).abs().max().float()


def rates_of_scores(scores: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return true and false positive rates at each score taken as the threshold, highest first.

    Equal scores give the same point, so that a tie is one step of the curve and no staircase.

    Args:
        scores: float (n,).
        truth: bool (n,).

    Returns:
        Two float (n + 2,), from 0 to 1.
    """
    descending, order = scores.sort(descending=True, stable=True)
    hits = truth[order].long()
    positives, negatives = hits.cumsum(0), (1 - hits).cumsum(0)
    if scores.numel():
        # the last index of each run of equal scores, without leaving the device
        last = torch.searchsorted(-descending, -descending, right=True) - 1
        positives, negatives = positives[last], negatives[last]
    has_nan = scores.isnan().any()
    return _as_rates(positives, has_nan), _as_rates(negatives, has_nan)


def rates_of_bins(
    positives: torch.Tensor, negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return true and false positive rates at each bin taken as the threshold, highest first.

    Args:
        positives: int64 (bins + 1,), the positives in each bin; the last those scored NaN.
        negatives: the same of the negatives.

    Returns:
        Two float (bins + 2,), from 0 to 1.
    """
    has_nan = positives[-1] + negatives[-1] > 0
    true_counts, false_counts = (c[:-1].flip(0).cumsum(0) for c in (positives, negatives))
    return _as_rates(true_counts, has_nan), _as_rates(false_counts, has_nan)


def _as_rates(counts: torch.Tensor, has_nan: torch.Tensor) -> torch.Tensor:
    """Return cumulative counts as rates from 0 on; all NaN of a class without samples."""
    double = torch.float32 if counts.device.type == "mps" else torch.float64
    points = torch.cat([counts.new_zeros(1), counts]).to(double)
    # the end twice: then the curve of no samples has two points, both NaN, and so a NaN area
    points = torch.cat([points, points[-1:]])
    return (points / points[-1]).masked_fill(has_nan, torch.nan)
