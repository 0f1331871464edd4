"""Which batches a graph is for: those of the form that most have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.forms import as_plain, form_of, is_plain

_MAX_OTHERS = 8  # batches of other forms than the graph's, in a row, before it is given up


class UsualForm:
    """The form that a graph is made for, and how many batches in a row had another.

    It is the form of the eager step before, so that no graph is made for a short last batch; in a
    run that goes on, the form that there was a graph for.

    Attributes:
        of_graph: the form of the graph that there is.
        num_others: batches since the last that had it.
    """

    def __init__(self) -> None:
        self.of_graph: tuple[Any, ...] = ()
        self.num_others = 0
        self._eager: tuple[Any, ...] | None = None  # of the last eager step
        self._saved_graph: list[Any] | None = None  # of the graph that a run goes on with
        self._saved_eager: list[Any] | None = None  # of the last eager step elsewhere

    def note_eager(self, leaves: Sequence[Any]) -> None:
        """Note the form of an eager step's batch."""
        if _are_plain(leaves):
            self._eager = form_of(leaves)

    def is_usual(self, leaves: Sequence[Any], goes_on: bool) -> bool:
        """Tell whether a batch has the form that a graph is to be made for.

        Args:
            leaves: of the batch.
            goes_on: with a run whose steps were the graph's.

        Raises:
            DeclinedError: no two batches in a row are alike, or they are not of plain tensors.
        """
        if not _are_plain(leaves):
            raise DeclinedError("its batches hold tensors that are not plain ones")
        form = form_of(leaves)
        if goes_on and self._saved_graph is not None:
            return as_plain(form) == self._saved_graph
        usual = form == self._eager
        if self._eager is None and self._saved_eager is not None:
            usual = as_plain(form) == self._saved_eager
        if usual:
            self.num_others = 0
        else:
            self.count_other()
        return usual

    def count_other(self) -> None:
        """Count a batch of another form.

        Raises:
            DeclinedError: there were too many in a row.
        """
        self.num_others += 1
        if self.num_others > _MAX_OTHERS:
            raise DeclinedError("its batches differ in shape")

    def state_dict(self, has_graph: bool) -> dict[str, Any]:
        """Return the forms for a run that goes on elsewhere.

        Args:
            has_graph: whether there is a graph here.
        """
        return {
            "form": as_plain(self.of_graph) if has_graph else self._saved_graph,
            "eager_form": self._saved_eager if self._eager is None else as_plain(self._eager),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with another process's run."""
        self._saved_graph, self._saved_eager = state.get("form"), state.get("eager_form")


def _are_plain(leaves: Sequence[Any]) -> bool:
    return all(not isinstance(leaf, torch.Tensor) or is_plain(leaf) for leaf in leaves)
