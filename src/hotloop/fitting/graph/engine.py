"""What every form of a graph does for the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Engine(Protocol):
    """A step in the form that is replayed.

    Attributes:
        exact: whether replaying gives bitwise what the eager step gives.
        updates: whether it ends with the update, and not with the gradients.
        updated: whether the last step did; not on a CPU where its loss was not finite.
        params: what the gradients are of; none where it updates.
        gradients: of the last step, new tensors; None where a parameter has none.
    """

    exact: bool
    updates: bool
    updated: bool
    params: list[torch.Tensor]
    gradients: list[Any]

    def start(self) -> None:
        """Take over from eager steps."""

    def step(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Run a training step; return loss and predictions."""

    def finish(self) -> None:
        """Leave everything as eager steps would."""

    def is_current(self) -> bool:
        """Tell whether tensors and settings are those that it was built for."""

    def state(self) -> list[torch.Tensor]:
        """Return all tensors that it may change: parameters, buffers, optimizer state."""

    def find_rounding(
        self, before: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Find elements that rounding alone decides on, bool: of the state by place.

        Where it does not update, those of the gradients that there are, by place.

        Args:
            before: the state before a step, on the host.
            leaves: of that step.
        """
