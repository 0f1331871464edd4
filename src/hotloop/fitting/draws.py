"""Trials of another memory layout, with random numbers that stay the same or are found out."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hotloop.data.random_state import RandomStates


class DrawsOutOfOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds out whether numbers are drawn for tensors whose memory is in another order.

    Random operators fill memory as it lies: in another layout an element gets another number.
    Whatever is compiled runs eagerly inside: Dynamo would leave it uncompiled for good otherwise.

    Args:
        dim: tensors of so many dimensions are looked at.

    Attributes:
        found: whether there was one, or numbers come from another generator than torch's global
            one.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dim, self.found = dim, False
        self._generators: list[tuple[torch.Generator, torch.Tensor]] = []  # and their first states
        self._eager = contextlib.ExitStack()

    def __enter__(self) -> DrawsOutOfOrder:
        """Begin to look."""
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import takes seconds
            self._eager.enter_context(torch.compiler.set_stance("force_eager"))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Look no longer, and put generators of the user's back."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._eager.close()
        for generator, state in self._generators:
            generator.set_state(state)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and look at what it draws for."""
        del types
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, torch.Generator):
                self.found = True
                if not any(known is value for known, _ in self._generators):
                    self._generators.append((value, value.get_state()))
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            results = result if isinstance(result, (list, tuple)) else (result,)
            self.found |= any(self._is_out_of_order(value) for value in (*args, *results))
        return result

    def _is_out_of_order(self, value: Any) -> bool:
        if not isinstance(value, torch.Tensor) or value.dim() != self.dim:
            return False
        if value.is_contiguous():
            return False
        last = value.permute(0, 2, 3, 1) if self.dim == 4 else value.t()
        return last.is_contiguous()


class DropoutInOrder(nn.Dropout):
    """Dropout that draws for channels-last images what it would draw for plain ones.

    On a CPU that is faster too: for other layouts torch draws number by number.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the inputs, some of them zero."""
        if not self.training or input.dim() != 4 or input.is_contiguous():
            return super().forward(input)
        dropped = functional.dropout(input.contiguous(), self.p)
        return dropped.contiguous(memory_format=torch.channels_last)


def draw_in_order(net: nn.Module) -> None:
    """Let a net's dropout layers draw as for plain images; those that work in place cannot."""
    for module in net.modules():
        if type(module) is nn.Dropout and not module.inplace and "forward" not in vars(module):
            module.__class__ = DropoutInOrder


def draw_as_before(net: nn.Module) -> None:
    """Make them plain again."""
    for module in net.modules():
        if type(module) is DropoutInOrder:
            module.__class__ = nn.Dropout  # type: ignore[assignment]


def layout_works(
    net: nn.Module, run: Callable[[nn.Module], torch.Tensor], device: torch.device, dim: int
) -> bool:
    """Try a forward and backward pass on a copy of a net; random states are kept, and gradients.

    Args:
        net: is not changed.
        run: computes the loss of the copy on a batch in the layout, to which it may convert both;
            neither batch nor loss are those that training goes on with.
        device: of the net.
        dim: dimensions of the tensors whose layout it is.

    Returns:
        Whether the copy can be run so, and draws the random numbers of the plain layout.
    """
    devices = [] if device.type == "cpu" else [device]
    draws = DrawsOutOfOrder(dim)
    states = RandomStates.read()
    try:
        twin = copy.deepcopy(net).train()
        # a run that goes on may begin with a validation
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), draws:
            loss = run(twin)
            with _gradients_kept(loss, set(twin.parameters())):
                loss.backward()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - whatever it is, the net cannot be run so
        return False
    finally:
        states.restore()
    return not draws.found


@contextlib.contextmanager
def _gradients_kept(loss: torch.Tensor, own: set[nn.Parameter]) -> Iterator[None]:
    """Leave the gradients of all parameters but those of a copy as they are.

    A loss that is a function may reach others, which training goes on with.
    """
    seen, waiting = set(), [loss.grad_fn]
    kept = []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
        leaf: Any = getattr(node, "variable", None)
        if leaf is not None and leaf not in own:
            kept.append((leaf, None if leaf.grad is None else leaf.grad.clone()))
    try:
        yield
    finally:
        for leaf, grad in kept:
            leaf.grad = grad
