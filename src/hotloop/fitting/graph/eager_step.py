"""What a graph needs of the step that it takes the place of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from hotloop.fitting.forward import StepOutput


class EagerStep(Protocol):
    """The step that a graph takes the place of.

    Attributes:
        begins_group: whether no batch before it waits for the update.
        must_look: whether it looks at the batch's indices, which a replay cannot.
        gives_whole: whether its loss is given all of an output with ``logits``; None: not known.
    """

    @property
    def begins_group(self) -> bool: ...  # noqa: D102

    @property
    def must_look(self) -> bool: ...  # noqa: D102

    @property
    def gives_whole(self) -> bool | None: ...  # noqa: D102

    def explain(self, batch: Any, error: RuntimeError) -> None:
        """Raise what an eager forward pass says to a batch that a graph failed on."""

    def run_eagerly(
        self, batch: Any, before_update: Callable[[], None] | None = None
    ) -> StepOutput:
        """Run the whole step; its loss may be a number."""

    def check_labels(self, preds: torch.Tensor | None) -> None:
        """Look at a batch's labels, before a replay that gives predictions like these."""

    def fits_group(self, batch: Any) -> bool:
        """Tell whether a batch's gradients count as much as those of its group before it."""

    def use_gradients(
        self,
        loss: torch.Tensor,
        batch: Any,
        params: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
    ) -> Any:
        """Go on from a batch's gradients as an eager step does; return the loss as it does."""

    def step_scheduler(self) -> None:
        """Step the scheduler after an update."""
