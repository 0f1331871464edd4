"""Inputs of few columns and very many rows, stored column by column while they come again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hotloop.fitting.draws import layout_works
from hotloop.nested import clone_tensors

_MIN_ROWS = 20_000
_MAX_COLUMNS = 32
_MAX_OUTPUTS = 8


@dataclass(frozen=True)
class _Held:
    """A tensor of the batch, with copies of what it was.

    Attributes:
        tensor: the user's, as long as it lives.
        rows: its values, to see when they change.
        columns: its values, column by column in memory.
    """

    tensor: weakref.ref[torch.Tensor]
    rows: torch.Tensor
    columns: torch.Tensor


class NarrowInputs:
    """Gives the net a copy of its inputs that lies column by column, in full-batch training.

    A product of (rows, 2) by (2, 1) and the one of its gradient leave a CPU's vector units empty
    when rows lie one after the other. A batch that comes again as the same tensors is copied once;
    its values are compared with the copy in each step, for whoever owns them may change them
    unseen. Values and shapes are the same, and sums round differently. Which batches qualify is a
    rule and no measurement, so that runs repeat themselves.

    Args:
        net: has linear layers of 2 to 32 inputs and at most 8 outputs, or nothing is done.
        device: only CPUs are served.
        budget: bytes that the copies may take.
    """

    def __init__(self, net: nn.Module, device: torch.device, budget: int) -> None:
        self.net, self.budget = net, budget
        layers = [m for m in net.modules() if type(m) is nn.Linear]
        self._widths = {
            layer.in_features
            for layer in layers
            if 2 <= layer.in_features <= _MAX_COLUMNS and layer.out_features <= _MAX_OUTPUTS
        }
        # a wide layer gains nothing, and loses as much with some sizes
        self._widths -= {m.in_features for m in layers if m.out_features > _MAX_OUTPUTS}
        self.applies = device.type == "cpu" and bool(self._widths)
        self._seen: list[weakref.ref[torch.Tensor]] | None = None
        self._held: dict[int, _Held] = {}
        self._goes_on = self._given_up = False

    @property
    def decided(self) -> bool:
        """Whether it is known in which layout further batches come."""
        return self._given_up or bool(self._held)

    def prepare(self, batch: Any, run: Callable[[nn.Module, Any], torch.Tensor]) -> Any:
        """Return a training batch in the layout that is used.

        Args:
            batch: ``[inputs, ..., labels]``, float (rows, columns) where something is to be done.
            run: computes the loss of a net on a batch.
        """
        if self._given_up:
            return batch
        if self._held:
            return self._from_copies(batch)
        places = self._places(batch)
        tensors = [batch[place] for place in places]
        again = self._seen is not None and all(
            ref() is tensor for ref, tensor in zip(self._seen, tensors, strict=False)
        )
        if not places or (self._seen is not None and not again):
            self._given_up = True
        elif not (again or self._goes_on):
            self._seen = [weakref.ref(tensor) for tensor in tensors]
        else:
            self._hold(batch, places, run)
            return self._from_copies(batch) if self._held else batch
        return batch

    def state_dict(self) -> dict[str, bool]:
        """Return what was decided, for a run that goes on in another process."""
        return {"goes_on": bool(self._held), "given_up": self._given_up}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Go on as another process did."""
        self._goes_on, self._given_up = state["goes_on"], state["given_up"]

    def _places(self, batch: Any) -> list[int]:
        """Return which parts of a batch are narrow inputs; the last part is the labels."""
        if type(batch) not in (list, tuple):
            return []
        places = [place for place, part in enumerate(batch[:-1]) if self._is_narrow(part)]
        num_bytes = sum(batch[place].numel() * batch[place].element_size() for place in places)
        return places if 2 * num_bytes <= self.budget else []

    def _is_narrow(self, part: Any) -> bool:
        return (
            isinstance(part, torch.Tensor)
            and part.dim() == 2
            and part.dtype in (torch.float32, torch.float64)
            and part.shape[1] in self._widths
            and len(part) >= _MIN_ROWS
            and part.is_contiguous()
            and not part.requires_grad
        )

    def _hold(
        self, batch: Any, places: list[int], run: Callable[[nn.Module, Any], torch.Tensor]
    ) -> None:
        """Copy the narrow inputs, if a copy of the net runs on such."""
        held = {
            place: _Held(
                weakref.ref(batch[place]), batch[place].clone(), batch[place].t().contiguous().t()
            )
            for place in places
        }
        parts = [held[i].columns if i in held else part for i, part in enumerate(batch)]
        columns = type(batch)(parts)

        def run_columns(net: nn.Module) -> torch.Tensor:
            return run(net, clone_tensors(columns))

        works = layout_works(self.net, run_columns, torch.device("cpu"), dim=2)
        self._given_up, self._held = not works, held if works else {}

    def _from_copies(self, batch: Any) -> Any:
        """Return the batch with its narrow inputs replaced, or as it is where it has changed."""
        parts = list(batch) if type(batch) in (list, tuple) else []
        for place, held in self._held.items():
            same = place < len(parts) and parts[place] is held.tensor()
            if not same or not torch.equal(parts[place], held.rows):
                self._given_up, self._held = True, {}
                return batch
            parts[place] = held.columns
        return type(batch)(parts)
