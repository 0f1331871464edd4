"""The inputs of some batches, which a net is exported and compared on."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hotloop.data.adapt import BatchSource
from hotloop.data.unpack import Unpacker, forward_parameters
from hotloop.errors import DataError
from hotloop.nested import count_samples

_MAX_BATCHES = 4


@dataclass(frozen=True)
class Inputs:
    """The inputs of one batch.

    Attributes:
        args: positional.
        kwargs: by name, in the order of the forward's parameters.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of an exported program's inputs."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    @property
    def form(self) -> str:
        """What a program is made for: the nesting, and the values that are no tensors."""
        leaves, nesting = pytree.tree_flatten((self.args, self.kwargs))
        values = ["tensor" if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
        return f"{nesting} {values}"

    @property
    def num_samples(self) -> int:
        """How many samples the batch has."""
        return count_samples((*self.args, *self.kwargs.values()))

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """Return inputs with other tensors; what is no tensor stays."""
        return Inputs(*pytree.tree_map_only(torch.Tensor, change, (self.args, self.kwargs)))

    def has_shapes_of(self, other: Inputs) -> bool:
        """Tell whether another batch's tensors have the same shapes."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return all(ours.shape == theirs.shape for ours, theirs in pairs)

    def first(self, num_samples: int) -> Inputs:
        """Return the first samples alone."""
        whole = self.num_samples
        return self.changed(lambda t: t[:num_samples] if has_samples(t, whole) else t)

    def parts(self) -> list[Inputs]:
        """Return smaller batches: the first sample, and all but the last."""
        whole = self.num_samples
        return [self.first(size) for size in sorted({1, whole - 1} - {0, whole})]

    def several(self) -> Inputs:
        """Return at least two samples: torch.export takes a size of 1 to be fixed."""
        if self.num_samples != 1:
            return self
        return self.changed(lambda t: torch.cat([t, t]) if has_samples(t, 1) else t)


def has_samples(tensor: torch.Tensor, num_samples: int) -> bool:
    """Tell whether a tensor's first dimension is the batch's."""
    return tensor.dim() > 0 and tensor.shape[0] == num_samples


def read_inputs(net: nn.Module, source: BatchSource, with_loss: bool) -> list[Inputs]:
    """Return the inputs of the first batches, as ``predict`` takes them.

    Args:
        net: whose inputs they are.
        source: batches, on the CPU.
        with_loss: whether the net computes its loss itself.

    Raises:
        DataError: there is no batch, one holds no tensor, or they differ in their parts.
    """
    unpacker, parameters = Unpacker(net, net_computes_loss=with_loss), forward_parameters(net)
    order = {name: place for place, name in enumerate(parameters)}
    found = []
    read: Any = source.iterate_with_host()
    with closing(read) as iterator:
        for _, batch in itertools.islice(iterator, _MAX_BATCHES):
            args, kwargs = unpacker.inputs_only(batch)
            names = sorted(kwargs, key=lambda name: order.get(name, len(order)))
            inputs = Inputs(args, {name: kwargs[name] for name in names})
            found.append(inputs.changed(torch.Tensor.detach))
    differ = len({inputs.form for inputs in found}) > 1
    if differ or not all(inputs.tensors for inputs in found):
        wrong = "the batches of data differ in their parts, or in a value that is no tensor"
        raise DataError(
            f"{wrong if differ else 'a batch of data holds no tensor'}: a net is exported for one "
            f"form of inputs; pass batches of that form, as predict takes them."
        )
    return found


def by_parameter(forward: Callable[..., Any], inputs: Inputs) -> dict[str, Any]:
    """Return the inputs by the names of the forward's parameters."""
    return dict(inspect.signature(forward).bind(*inputs.args, **inputs.kwargs).arguments)
