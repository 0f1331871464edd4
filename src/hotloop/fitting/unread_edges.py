"""Rows and columns at the edge of images that no layer's result depends on, left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torchs

# a copy of the images without their edge must cost less than what is not computed
_MIN_SHARE_LEFT_OUT = 0.05
# exact types, since a subclass may do anything; each works on every value, or channel, by itself,
# and Dropout2d draws one number for a channel of a sample, whatever the images' size
_PER_VALUE = (
    nn.Dropout2d,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Identity,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)
_POOLS = (nn.AvgPool2d, nn.MaxPool2d)


@dataclass(frozen=True)
class _Window:
    """What one convolution or pooling reads, by dimension (height, width).

    Attributes:
        extent: rows and columns from the first to the last that one output reads.
        stride: rows and columns between two outputs.
        work: multiplications for one output position; 0 for pooling.
    """

    extent: tuple[int, int]
    stride: tuple[int, int]
    work: int

    def outputs(self, size: int, dim: int) -> int:
        """Return how many outputs an input of ``size`` gives."""
        return (size - self.extent[dim]) // self.stride[dim] + 1

    def inputs(self, num_outputs: int, dim: int) -> int:
        """Return the size of the input that so many outputs read."""
        return (num_outputs - 1) * self.stride[dim] + self.extent[dim]


class CropUnread:
    """A forward pre-hook that cuts off what no result of a chain of layers depends on.

    Args:
        windows: the chain's convolutions and poolings.
        layers: all of the chain's layers, and what holds them.
    """

    def __init__(self, windows: list[_Window], layers: list[nn.Module]) -> None:
        self.windows, self.layers = windows, layers

    def serves(self, windows: list[_Window], layers: list[nn.Module]) -> bool:
        """Tell whether a chain is the one that this was made for."""
        same = len(layers) == len(self.layers) and windows == self.windows
        return same and all(a is b for a, b in zip(layers, self.layers, strict=True))

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the cropped inputs, or None to leave them as they are."""
        images = args[0] if len(args) == 1 else None
        if not isinstance(images, torch.Tensor) or images.dim() != 4:
            return None
        if self._is_watched(module):
            return None
        height, width = images.shape[2:]
        rows, columns = self.sizes_read(height, width)
        if (rows, columns) == (height, width):
            return None
        return (images[:, :, :rows, :columns],)

    def _is_watched(self, module: nn.Module) -> bool:
        """Tell whether anybody hooks into a layer, and so wants to see all that it computes."""
        if (
            torchs._global_forward_hooks
            or torchs._global_forward_pre_hooks
            or torchs._global_backward_hooks
            or torchs._global_backward_pre_hooks
            or len(module._forward_pre_hooks) > 1  # one is this
        ):
            return True
        return any(
            layer._forward_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
            or (layer._forward_pre_hooks and layer is not module)
            for layer in self.layers
        )

    def sizes_read(self, height: int, width: int) -> tuple[int, int]:
        """Return how many rows and columns to keep of images of a size."""
        read = self._read(height, 0), self._read(width, 1)
        all_work, work_left = self._work(height, width), self._work(*read)
        if work_left > (1 - _MIN_SHARE_LEFT_OUT) * all_work:
            return height, width
        return read

    def _read(self, size: int, dim: int) -> int:
        """Return how much of ``size`` the results depend on, in one dimension."""
        num_results = size
        for window in self.windows:
            num_results = window.outputs(num_results, dim)
            if num_results < 1:
                return size  # the layers will say what is wrong
        for window in reversed(self.windows):
            num_results = window.inputs(num_results, dim)
        return num_results

    def _work(self, height: int, width: int) -> int:
        work = 0
        for window in self.windows:
            height, width = window.outputs(height, 0), window.outputs(width, 1)
            work += height * width * window.work
        return work


class UnreadEdges:
    """Lets chains of convolutions and poolings compute only what their results depend on.

    A pooling of 2 by 2 leaves out the last row and column of a 9 by 9 image: the convolution
    before it need not compute them, and so on up to the images, of which a strip at the right and
    bottom is cut off. What is left out has a gradient of exactly zero, so that loss and gradients
    are the same up to the order of sums. Chains are the first layers of an ``nn.Sequential`` that
    are known and not padded, and nobody hooks into.
    """

    def __init__(self) -> None:
        self._known: dict[nn.Module, tuple[int, CropUnread]] = {}

    @contextlib.contextmanager
    def left_out(self, net: nn.Module) -> Iterator[None]:
        """Leave out, inside the block, what a net does not read.

        Chains are looked for each time, and no trace of it is left: code of the user's that runs
        in between may change layers, copy the net or export it.
        """
        chains = _find_chains(net)
        crops = {module: self._crop_of(module, *chain) for module, chain in chains.items()}
        for module, (number, crop) in crops.items():
            module._forward_pre_hooks[number] = crop
        try:
            yield
        finally:
            for module, (number, _) in crops.items():
                module._forward_pre_hooks.pop(number, None)

    def _crop_of(
        self, module: nn.Module, windows: list[_Window], layers: list[nn.Module]
    ) -> tuple[int, CropUnread]:
        """Return the hook of a chain, under the number that torch gave it.

        It is the same one as long as the chain is: who traced the net is told of no change.
        """
        known = self._known.get(module)
        if known is None or not known[1].serves(windows, layers):
            crop = CropUnread(windows, layers)
            handle = module.register_forward_pre_hook(crop)
            handle.remove()
            known = self._known[module] = (handle.id, crop)
        return known


def _find_chains(net: nn.Module) -> dict[nn.Module, tuple[list[_Window], list[nn.Module]]]:
    """Return the chains of a net that may leave something out, by what they begin."""
    found: dict[nn.Module, tuple[list[_Window], list[nn.Module]]] = {}
    seen: set[int] = set()
    for module in net.modules():
        if type(module) is nn.Sequential and id(module) not in seen:
            windows, layers = _find_chain(module)
            seen.update(id(layer) for layer in layers)  # a Sequential within is no other chain
            if len(windows) > 1 and any(window.work for window in windows):
                found[module] = (windows, layers)
    return found


def _find_chain(sequential: nn.Sequential) -> tuple[list[_Window], list[nn.Module]]:
    """Return the windows and the layers of the chain that a Sequential begins with."""
    windows: list[_Window] = []
    layers: list[nn.Module] = []
    _extend_chain(sequential, windows, layers)
    return windows, layers


def _extend_chain(module: nn.Module, windows: list[_Window], layers: list[nn.Module]) -> bool:
    """Add a module to a chain; return whether all of it belongs there and the chain goes on."""
    if any(name in vars(module) for name in ("forward", "_conv_forward")):  # replaced
        return False
    layers.append(module)
    if type(module) is nn.Sequential:
        return all(_extend_chain(layer, windows, layers) for layer in module)
    if type(module) in _PER_VALUE:
        # what works in place would change a part of the images that were passed
        return bool(windows) or not getattr(module, "inplace", False)
    window = _window_of(module)
    if window is not None:
        windows.append(window)
        return True
    layers.pop()
    return False


def _window_of(module: Any) -> _Window | None:
    """Return what a layer reads; None unless it is a known one without padding."""
    kernel, stride = _pair(module, "kernel_size"), _pair(module, "stride")
    dilation = _pair(module, "dilation") if hasattr(module, "dilation") else (1, 1)
    if kernel is None or stride is None or dilation is None:
        return None
    if type(module) is nn.Conv2d:
        if module.padding != "valid" and _pair(module, "padding") != (0, 0):
            return None
        channels = module.in_channels // module.groups
        work = module.out_channels * channels * kernel[0] * kernel[1]
    elif type(module) in _POOLS:
        if _pair(module, "padding") != (0, 0) or module.ceil_mode:
            return None
        if getattr(module, "return_indices", False):
            return None  # which count the columns of the whole image
        work = 0
    else:
        return None
    extent = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    return _Window(extent, stride, work)


def _pair(module: Any, name: str) -> tuple[int, int] | None:
    """Return a layer's setting by dimension, of which it may have one or two; None otherwise."""
    value = getattr(module, name, None)
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not values or len(values) > 2 or not all(type(number) is int for number in values):
        return None
    return values[0], values[-1]
