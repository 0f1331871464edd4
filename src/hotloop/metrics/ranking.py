"""AUC and KS of two classes: how well scores rank positives above negatives."""

from __future__ import annotations

import torch
from torch import nn

from hotloop.metrics.binary import flatten_pair


class _Ranking(nn.Module):
    """Keeps what the ROC curve needs.

    Exact by default: every score is kept, 5 bytes a sample in float32. With ``num_bins`` the
    probabilities are counted in that many equal bins (torchkeras' way, with 10,001): constant
    memory, and the value is that of scores rounded down to the bins.

    k updates give the state of one update on all their samples; bins of several processes may be
    summed, scores concatenated.

    Args:
        from_logits: predictions are logits; False for probabilities in [0, 1]. Only the bins
            need to know: the exact value depends on the order of the scores alone.
        num_bins: count in bins instead of keeping the scores.
    """

    concatenable = True
    positives: torch.Tensor
    negatives: torch.Tensor

    def __init__(self, from_logits: bool = True, num_bins: int | None = None) -> None:
        super().__init__()
        self.from_logits, self.num_bins = from_logits, num_bins
        self._scores: list[torch.Tensor] = []
        self._truth: list[torch.Tensor] = []
        for name in ("positives", "negatives"):
            counts = torch.zeros(num_bins or 0, dtype=torch.int64)
            self.register_buffer(name, counts, persistent=False)

    @torch.no_grad()
    def update(self, preds: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch: floats and labels of equal shape, or differing by a last 1.

        Raises:
            MetricError: the shapes differ; names both.
        """
        scores, truth = flatten_pair(preds, targets)
        self._add(scores, truth)

    @torch.no_grad()
    def forward(self, preds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Add a batch and return its own value, of 0 dimensions."""
        scores, truth = flatten_pair(preds, targets)
        self._add(scores, truth)
        return self._value(*cumulative_counts(scores, truth))

    @torch.no_grad()
    def compute(self) -> torch.Tensor:
        """Return the value since ``reset``; NaN while only one class, or nothing, was seen."""
        if self.num_bins is not None:
            # from the highest bin down, as the curve runs
            return self._value(self.positives.flip(0).cumsum(0), self.negatives.flip(0).cumsum(0))
        if not self._scores:
            return torch.tensor(torch.nan, device=self.positives.device)
        return self._value(*cumulative_counts(torch.cat(self._scores), torch.cat(self._truth)))

    def reset(self) -> None:
        """Forget all batches."""
        self._scores, self._truth = [], []
        self.positives.zero_()
        self.negatives.zero_()

    def _add(self, scores: torch.Tensor, truth: torch.Tensor) -> None:
        if self.num_bins is None:
            self._scores.append(scores.detach().clone())
            self._truth.append(truth)
            return
        probabilities = scores.sigmoid() if self.from_logits else scores
        bins = (probabilities * (self.num_bins - 1)).long().clamp(0, self.num_bins - 1)
        self.positives.scatter_add_(0, bins, truth.long())
        self.negatives.scatter_add_(0, bins, (~truth).long())

    def _value(self, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class AUC(_Ranking):
    """The area under the ROC curve, by trapezoids, ties as in scikit-learn's ``roc_auc_score``.

    NaN while only one class was seen.
    """

    def _value(self, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        true_rate, false_rate = _rates(positives, negatives)
        return torch.trapezoid(true_rate, false_rate).float()


class KS(_Ranking):
    """The Kolmogorov-Smirnov statistic: the largest gap of true and false positive rates.

    NaN while only one class was seen.
    """

    def _value(self, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        true_rate, false_rate = _rates(positives, negatives)
        if not true_rate.numel():
            return true_rate.new_tensor(torch.nan).float()
        return (true_rate - false_rate).abs().max().float()


def cumulative_counts(
    scores: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positives and negatives with a score at or above each sample's, highest first.

    Of equal scores only the last has its full count; the others take it too, so that a tie is one
    point of the curve and no staircase.

    Args:
        scores: float (n,).
        truth: bool (n,).

    Returns:
        Two int64 (n,).
    """
    order = scores.argsort(descending=True, stable=True)
    ordered, hits = scores[order], truth[order].long()
    positives = hits.cumsum(0)
    negatives = (1 - hits).cumsum(0)
    if not scores.numel():
        return positives, negatives
    # the last index of each run of equal scores, without leaving the device
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1
    return positives[last], negatives[last]


def _rates(positives: torch.Tensor, negatives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the curve's two rates from (0, 0) on; 0 / 0 makes NaN of a class without samples."""
    double = torch.float32 if positives.device.type == "mps" else torch.float64
    start = positives.new_zeros(1)
    true_counts = torch.cat([start, positives]).to(double)
    false_counts = torch.cat([start, negatives]).to(double)
    return true_counts / true_counts[-1], false_counts / false_counts[-1]
