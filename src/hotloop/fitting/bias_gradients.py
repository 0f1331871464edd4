"""Gradients of convolutions' biases, summed apart from those of the weights on an x86 CPU.

oneDNN computes both together, for channels-last images in more time than the weights of a small
kernel take by themselves. The bias's gradient is the sum over all pixels, and a product with ones
takes a third of that (``python -m benchmarks.step_parts``).
"""

from __future__ import annotations

import math
import platform
from typing import Any

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules._functions import BackwardHookFunction

_MIN_VALUES = 1 << 20  # of a result: fewer take less time than what is saved
_MIN_CHANNELS = 16  # fewer are cheap in oneDNN, and dear in a product
_MAX_NODES = 2000  # of a step's graph: to look at more takes time itself


class BiasGradients:
    """Takes large convolutions' biases out of backward passes, and sums their gradients itself.

    Nothing of net or graph is changed: the pass is asked for all other gradients, and each taken
    convolution's incoming gradient is looked at on the way. A bias's sum then goes to its leaf as
    the pass would have brought it, hooks included.

    Args:
        net: whose convolutions; as it is when this is made.
    """

    def __init__(self, net: nn.Module) -> None:
        layers: list[Any] = [layer for layer in net.modules() if type(layer) is nn.Conv2d]
        self._biases = {
            id(layer.bias): layer.bias
            for layer in layers
            if layer.bias is not None and layer.out_channels >= _MIN_CHANNELS
        }

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Tell whether it may pay on a device."""
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        is_there = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        return device.type == "cpu" and is_x86 and is_there

    def take_from(self, loss: torch.Tensor) -> TakenBiases | None:
        """Return the biases that are to be taken out of a loss's backward pass; None for none.

        Where there are none in one pass, none are looked for in those after it.
        """
        if not self._biases:
            return None
        taken = TakenBiases(loss, self._biases)
        if taken.found:
            return taken
        self._biases = {}
        return None


class TakenBiases:
    """The biases that one backward pass leaves out.

    Attributes:
        found: whether there are any.
        inputs: the leaves of the loss's graph but for them.

    Args:
        loss: with a graph.
        biases: that may be taken, by id; loses those that it does not pay for.
    """

    def __init__(self, loss: torch.Tensor, biases: dict[int, torch.Tensor]) -> None:
        self._biases = biases
        nodes, num_uses = _walk(loss.grad_fn)
        self._taken: list[tuple[torch.Tensor, Any]] = []  # with its convolution's node
        taken_leaves = set()
        for node in nodes:
            leaf = _leaf_of_bias(node)
            if leaf is not None and id(leaf.variable) in biases and num_uses[leaf] == 1:
                self._taken.append((leaf.variable, node))
                taken_leaves.add(leaf)
        leaves = [node for node in nodes if _is_leaf(node) and node not in taken_leaves]
        self.inputs = tuple(leaf.variable for leaf in leaves)
        # a function written in Python may run a pass of its own (a reentrant checkpoint), whose
        # leaves are not among these
        in_python = any(map(_is_users_function, nodes))
        self.found = bool(self._taken and leaves and not in_python)
        self._sums: list[torch.Tensor | None] = [None] * len(self._taken)
        self._handles: list[Any] = []

    def watch(self) -> None:
        """Look at the gradients that come to the convolutions."""
        for place, (_, node) in enumerate(self._taken):
            self._handles.append(node.register_prehook(self._sum_at(place)))

    def unwatch(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def gradients(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the biases that the pass came to, and their gradients."""
        pairs = [
            (bias, found)
            for (bias, _), found in zip(self._taken, self._sums, strict=True)
            if found is not None
        ]
        return [bias for bias, _ in pairs], [found for _, found in pairs]

    def _sum_at(self, place: int) -> Any:
        def keep_sum(gradients: tuple[torch.Tensor | None, ...]) -> None:
            (gradient,) = gradients
            if gradient is None:
                return
            if gradient.is_contiguous(memory_format=torch.channels_last):
                self._sums[place] = _sum_over_pixels(gradient)
                return
            self._biases.pop(id(self._taken[place][0]), None)  # oneDNN is faster there
            self._sums[place] = gradient.sum((0, 2, 3))

        return keep_sum


def _sum_over_pixels(gradient: torch.Tensor) -> torch.Tensor:
    """Return the sum for each channel of (batch, channels, height, width), channels last."""
    pixels = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])
    return torch.mv(pixels.t(), pixels.new_ones(len(pixels)))


def _walk(root: Any) -> tuple[list[Any], dict[Any, int]]:
    """Return the nodes of a graph, and how often each is used; none of a very large one."""
    num_uses = {root: 1}
    nodes = [root]
    for node in nodes:  # which grows
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following in num_uses:
                num_uses[following] += 1
                continue
            num_uses[following] = 1
            nodes.append(following)
        if len(nodes) > _MAX_NODES:
            return [], {}
    return nodes, num_uses


def _is_users_function(node: Any) -> bool:
    """Tell whether a node is a function written in Python, but for that of modules' hooks."""
    made_by = getattr(node, "_forward_cls", None)
    return isinstance(node, BackwardCFunction) and made_by is not BackwardHookFunction


def _is_leaf(node: Any) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _leaf_of_bias(node: Any) -> Any:
    """Return the leaf of a bias that may be taken from a node; None where there is none."""
    if type(node).__name__ != "ConvolutionBackward0":
        return None
    leaves: list[Any] = [edge[0] for edge in node.next_functions]
    weight, bias = leaves[1:]
    results: Any = getattr(node, "_input_metadata", ())  # not in each version of torch
    if weight is None or bias is None or not _is_leaf(bias) or len(results) != 1:
        return None  # without the weight's, the pass might not come here at all
    shape, dtype = results[0].shape, results[0].dtype
    is_large = len(shape) == 4 and math.prod(shape) >= _MIN_VALUES
    return bias if is_large and dtype == torch.float32 else None
