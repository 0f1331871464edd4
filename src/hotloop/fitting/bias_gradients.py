"""Gradients of convolutions' biases, computed apart from those of the weights on an x86 CPU.

oneDNN computes both together, for channels-last images in more time than the weights of a small
kernel take by themselves. The bias's gradient is the sum over all pixels, and a product with ones
takes a third of that (``python -m benchmarks.step_parts``).
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_MIN_VALUES = 1 << 20  # of a result: fewer take less time than what is saved
_MIN_CHANNELS = 16  # fewer are cheap in oneDNN, and dear in a product
_BACKWARD = torch.ops.aten.convolution_backward.default


class BiasGradients:
    """Lets a net's convolutions compute their biases' gradients apart.

    That is done where images come channels-last, in float32 and without autocast; elsewhere, and
    for layers whose computation the user replaced, it is torch's own.
    """

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Tell whether it may pay on a device."""
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        return device.type == "cpu" and is_x86 and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def apart(self, net: nn.Module) -> Iterator[None]:
        """Do so inside the block; no trace of it is left afterwards."""
        layers: list[Any] = [layer for layer in net.modules() if _is_meant(layer)]
        if any(_is_compiled(module) for module in net.modules()):
            layers = []  # code that looks at each attribute of a module
        for layer in layers:
            vars(layer)["_conv_forward"] = _make_forward(layer)
        try:
            yield
        finally:
            for layer in layers:
                vars(layer).pop("_conv_forward", None)


def _is_meant(layer: Any) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.bias is not None
        and layer.out_channels >= _MIN_CHANNELS
        and layer.padding_mode == "zeros"
        and type(layer.padding) is tuple
        and not {"forward", "_conv_forward"} & vars(layer).keys()
    )


def _is_compiled(module: Any) -> bool:
    is_wrapped = type(module).__module__.startswith("torch._dynamo")
    return is_wrapped or getattr(module, "_compiled_call_impl", None) is not None


def _make_forward(layer: nn.Conv2d) -> Callable[..., torch.Tensor]:
    """Return what takes the place of the layer's ``_conv_forward``."""

    def conv_forward(
        images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if bias is not None and _pays(images, weight, bias, layer):
            options = (layer.stride, layer.padding, layer.dilation, layer.groups)
            found: torch.Tensor = _Convolution.apply(images, weight, bias, *options)  # type: ignore[no-untyped-call]
            return found
        return nn.Conv2d._conv_forward(layer, images, weight, bias)  # type: ignore[no-any-return]

    return conv_forward


def _pays(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, layer: nn.Conv2d) -> bool:
    return (
        type(images) is torch.Tensor
        and images.dim() == 4
        and images.dtype == weight.dtype == bias.dtype == torch.float32
        and bias.requires_grad
        and torch.is_grad_enabled()
        # channels last, if not without gaps: of what is cut off there are
        and images.stride(1) == 1
        and images.stride(3) == images.shape[1]
        and _num_values(images, layer) >= _MIN_VALUES
        and not torch.is_autocast_enabled("cpu")
        # transforms of torch.func and forward derivatives want functions of another form
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def _num_values(images: torch.Tensor, layer: nn.Conv2d) -> int:
    """Return about how many values the result has."""
    height, width = images.shape[2:]
    return len(images) * layer.out_channels * height * width // (layer.stride[0] * layer.stride[-1])


class _Convolution(torch.autograd.Function):
    """A convolution whose backward pass sums the bias's gradient by itself."""

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> torch.Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # once, for both ways
        ctx.save_for_backward(images, weight)
        ctx.options = (list(stride), list(padding), list(dilation), False, [0, 0], groups)
        return torch.conv2d(images, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        images, weight = ctx.saved_tensors
        num_channels = gradient.shape[1]
        wants_images, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        apart = wants_bias and gradient.is_contiguous(memory_format=torch.channels_last)
        mask = [wants_images, wants_weight, wants_bias and not apart]
        found: Any = (None, None, None)
        if any(mask):
            found = _BACKWARD(gradient, images, weight, [num_channels], *ctx.options, mask)
        of_bias = found[2]
        if apart:
            pixels = gradient.permute(0, 2, 3, 1).reshape(-1, num_channels)
            of_bias = torch.mv(pixels.t(), pixels.new_ones(len(pixels)))
        return found[0], found[1], of_bias, None, None, None, None
