"""A plain function of predictions and labels as a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hotloop.errors import MetricError
from hotloop.nested import describe


class FunctionMetric(nn.Module):
    """The value of a function on all predictions and labels of an epoch.

    They are kept on their device until the epoch's end, and given to the function on the CPU: the
    value is that of the whole epoch, not a mean over batches.

    Args:
        function: takes predictions and labels, each of all samples along its first dimension;
            returns a number, or a dict of numbers by name.
    """

    concatenable = True

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.preds: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def update(self, preds: Any, labels: Any) -> None:
        """Keep a batch.

        Raises:
            MetricError: predictions or labels are not one tensor each.
        """
        for value, name in ((preds, "predictions"), (labels, "labels")):
            if not isinstance(value, torch.Tensor):
                raise MetricError(
                    f"a metric that is a function takes one tensor of {name}, and the step gave "
                    f"{describe(value, name)}: return one tensor from the net, or the values from "
                    f"a step of your own."
                )
        self.preds.append(preds.detach())
        self.labels.append(labels)

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> Any:
        """Keep a batch, and return its own value."""
        self.update(preds, labels)
        return self.function(preds.detach().cpu(), labels.cpu())

    def compute(self) -> Any:
        """Return the function's value of all batches; NaN without any."""
        if not self.preds:
            return float("nan")
        return self.function(_joined(self.preds), _joined(self.labels))

    def reset(self) -> None:
        """Forget all batches."""
        self.preds, self.labels = [], []


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part if part.dim() else part[None] for part in parts]).cpu()
