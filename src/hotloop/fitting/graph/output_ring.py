"""Where a graph leaves the results of its last steps."""

from __future__ import annotations

from typing import Any

import torch

from hotloop.fitting.graph.pure_step import cloned

_MAX_RING_BYTES = 1 << 24


class OutputRing:
    """Rows that the graph writes one step's loss and predictions into, in turn.

    Args:
        loss: of one step, 0 dimensions.
        preds: of one step; a tree of tensors, or large ones, have no place in it.
        num_rows: of the ring; a row stays as it is for one step less.
        keeps_preds: whether anybody reads predictions.
    """

    def __init__(self, loss: torch.Tensor, preds: Any, num_rows: int, keeps_preds: bool) -> None:
        self._num_rows, self._next = num_rows, 0
        self._keeps_preds = keeps_preds
        self._slot = torch.zeros(1, dtype=torch.int64, device=loss.device)
        self._losses = loss.new_zeros(num_rows)
        self._preds: torch.Tensor | None = None
        if keeps_preds and _fits_a_ring(preds, num_rows):
            self._preds = preds.new_zeros(num_rows, *preds.shape)
        # with a count of versions of their own: a row is written when nobody holds it any more
        self._loss_rows = self._losses.data.unbind()
        self._preds_rows = () if self._preds is None else self._preds.data.unbind()

    def write(self, loss: torch.Tensor, preds: Any) -> None:
        """Write a step's outputs and go on to the next row; on the device alone."""
        self._losses.index_copy_(0, self._slot, loss.reshape(1))
        if self._preds is not None:
            self._preds.index_copy_(0, self._slot, preds[None])
        self._slot.add_(1)

    def take(self, preds: Any) -> tuple[torch.Tensor, Any]:
        """Return the row that was just written; ``preds`` is copied where it has no place here."""
        row, self._next = self._next, self._next + 1
        if self._next == self._num_rows:
            self.rewind()
        if self._preds_rows:
            return self._loss_rows[row], self._preds_rows[row]
        return self._loss_rows[row], cloned(preds) if self._keeps_preds else preds

    def rewind(self) -> None:
        """Begin again with the first row."""
        self._slot.zero_()
        self._next = 0


def _fits_a_ring(preds: Any, num_rows: int) -> bool:
    if not isinstance(preds, torch.Tensor):
        return False
    return preds.numel() * preds.element_size() * num_rows <= _MAX_RING_BYTES
