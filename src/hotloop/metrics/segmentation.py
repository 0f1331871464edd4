"""Intersection over union of segmentation masks, from a confusion matrix on the device."""

from __future__ import annotations

import sys

import torch
from torch import nn

from hotloop.errors import MetricError
from hotloop.metrics.binary import check_tensors, shape_without_ones
from hotloop.nested import describe_tensor


class IOU(nn.Module):
    """Mean over classes of |prediction and truth| / |prediction or truth|.

    A class that neither prediction nor truth has is left out of the mean; NaN where that leaves
    none. Labels outside 0..num_classes-1 are ignored. k updates give the state of one update on
    all their samples, and matrices of several processes may be summed.

    Args:
        num_classes: classes; predictions are float (batch, num_classes, ...) and their largest
            value decides. Under 2: one logit a pixel, positive above 0, in the labels' shape.
        if_print: print the table of classes with each ``compute``.
    """

    concatenable = True
    higher_is_better = True
    mat: torch.Tensor

    def __init__(self, num_classes: int, if_print: bool = False) -> None:
        super().__init__()
        self.num_classes, self.if_print = num_classes, if_print
        size = max(num_classes, 2)
        self.register_buffer("mat", torch.zeros(size, size, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, preds: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch.

        Args:
            preds: float (batch, num_classes, ...); of two classes with one logit, as targets.
            targets: class indices (batch, ...), any dtype; dimensions of size 1 do not matter.

        Raises:
            MetricError: the shapes do not fit; names both.
        """
        self.mat += self._confusion(preds, targets)

    @torch.no_grad()
    def forward(self, preds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Add a batch and return its own mean, float32 of 0 dimensions."""
        matrix = self._confusion(preds, targets)
        self.mat += matrix
        return class_ious(matrix).nanmean()

    def compute(self) -> torch.Tensor:
        """Return the mean over all batches since ``reset``, float32 of 0 dimensions."""
        if self.if_print:
            print(self, file=sys.stderr)  # noqa: T201
        return class_ious(self.mat).nanmean()

    def reset(self) -> None:
        """Forget all batches."""
        self.mat.zero_()

    def __str__(self) -> str:
        """Return the share of right pixels, each class's value and their mean."""
        right = self.mat.diag().sum() / self.mat.sum()
        ious = class_ious(self.mat)
        listed = ", ".join(f"{value:.4f}" for value in ious.tolist())
        return f"global correct: {right:.4f}\nIoU: {listed}\nmean IoU: {ious.nanmean():.4f}"

    def _confusion(self, preds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = self._predicted_classes(preds, targets).reshape(-1)
        labels = targets.reshape(-1)
        if not labels.is_floating_point():
            labels = labels.long()  # bytes do not compare with a size above 255
        size = len(self.mat)
        # ignored pixels go to a cell past the matrix: selecting them away would wait
        known = (labels >= 0) & (labels < size)
        cells = torch.where(known, labels.long() * size + found, size * size)
        counts = torch.zeros(size * size + 1, dtype=torch.int64, device=preds.device)
        counts.scatter_add_(0, cells, torch.ones_like(cells))
        return counts[:-1].reshape(size, size)

    def _predicted_classes(self, preds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return class indices int64 in the shape of targets, but for dimensions of size 1."""
        check_tensors(preds, targets)
        if self.num_classes < 2:
            found = (preds > 0).long()
        elif preds.dim() < 2 or preds.shape[1] != self.num_classes:
            raise MetricError(
                f"IOU of {self.num_classes} classes got predictions {describe_tensor(preds)}: pass "
                f"them in the shape (batch, {self.num_classes}, ...)."
            )
        else:
            found = preds.argmax(1)
        if shape_without_ones(found) != shape_without_ones(targets):
            raise MetricError(
                f"predictions {describe_tensor(preds)} and labels {describe_tensor(targets)} "
                f"differ in shape or number of pixels: pass (batch, classes, ...) with "
                f"(batch, ...), or, of two classes, one logit for each label."
            )
        return found


def class_ious(matrix: torch.Tensor) -> torch.Tensor:
    """Return each class's value, float32 (classes,); NaN for a class that nothing has.

    Args:
        matrix: int64 (classes, classes), rows by truth, columns by prediction.
    """
    hits = matrix.diag()
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)
