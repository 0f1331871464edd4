"""Changes to net and optimizer that compute the same up to rounding, faster; and back again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hotloop.fitting.draws import draw_as_before, draw_in_order, layout_works
from hotloop.fitting.optimizers import is_dense
from hotloop.nested import clone_tensors

# exact types: a subclass may do anything in its own step
FUSED_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
_FUSED_DEVICES = {
    torch.optim.Adam: ("cpu", "cuda", "mps", "xpu"),
    torch.optim.AdamW: ("cpu", "cuda", "mps", "xpu"),
    torch.optim.SGD: ("cpu", "cuda", "mps"),
    torch.optim.Adagrad: ("cpu",),
}


class FusedOptimizer:
    """Lets an optimizer update all parameters in one kernel, where it can and was not told how.

    ``fused`` computes what the plain loop over parameters computes, up to rounding.
    """

    def __init__(self, optimizer: Any, net: nn.Module, device: torch.device) -> None:
        self.optimizer = optimizer
        self._before: list[dict[str, Any]] = []
        # embeddings with sparse gradients, which fused kernels refuse
        sparse = any(getattr(module, "sparse", False) is True for module in net.modules())
        self.applies = not sparse and self._can_be_fused(device)

    def apply(self) -> None:
        """Turn ``fused`` on in every parameter group."""
        for group in self.optimizer.param_groups:
            self._before.append({name: group.get(name) for name in ("fused", "foreach")})
            group["fused"], group["foreach"] = True, False
            self._place_steps(group)

    def undo(self) -> None:
        """Give the groups their own settings back, and the step counters their place."""
        for group, before in zip(self.optimizer.param_groups, self._before, strict=False):
            group.update(before)
            for parameter in group["params"]:
                step = self.optimizer.state.get(parameter, {}).get("step")
                if isinstance(step, torch.Tensor) and step.device.type != "cpu":
                    self.optimizer.state[parameter]["step"] = step.cpu()
        self._before = []

    def _can_be_fused(self, device: torch.device) -> bool:
        kind = type(self.optimizer)
        if kind not in FUSED_OPTIMIZERS or device.type not in _FUSED_DEVICES[kind]:
            return False
        for group in self.optimizer.param_groups:
            if group.get("fused") is not None or group.get("foreach") is not None:
                return False
            if group.get("differentiable") or group.get("capturable"):
                return False
            if isinstance(group.get("lr"), torch.Tensor):
                return False
            if not all(
                p.is_floating_point() and not p.is_sparse and is_dense(p) for p in group["params"]
            ):
                return False
        return True

    def _place_steps(self, group: dict[str, Any]) -> None:
        """Put step counters beside their parameters, where the fused kernels read them."""
        for parameter in group["params"]:
            step = self.optimizer.state.get(parameter, {}).get("step")
            if isinstance(step, torch.Tensor) and step.device != parameter.device:
                self.optimizer.state[parameter]["step"] = step.to(parameter.device)


class ChannelsLast:
    """Stores images and convolution weights with the channel as the last dimension in memory.

    The kernels of CPUs and tensor cores run faster on that; values and shapes are the same, and
    rounding differs. Nets that depend on the memory's order (``view`` of an activation) raise, and
    some draw other random numbers; a trial on a copy of the net finds that out before training.
    """

    def __init__(self, net: nn.Module, optimizer: Any) -> None:
        self.net, self.optimizer = net, optimizer
        self.applies = any(type(module) is nn.Conv2d for module in net.modules())
        self.applied = self._decided = False

    def prepare(self, batch: Any, run: Callable[[nn.Module, Any], torch.Tensor]) -> Any:
        """Return the batch in the layout that is used, and decide on it with the first one."""
        if not self._decided:
            self._decided = True
            self.applied = _has_images(batch) and self.works(run, batch)
            if self.applied:
                self.apply()
        return to_channels_last(batch) if self.applied else batch

    def apply(self) -> None:
        """Convert weights and optimizer state."""
        self._convert(torch.channels_last)
        draw_in_order(self.net)

    def undo(self) -> None:
        """Convert them back."""
        if self.applied:
            self._convert(torch.contiguous_format)
            draw_as_before(self.net)
        self.applied = self._decided = False

    def state_dict(self) -> dict[str, bool]:
        """Return what was decided, for a process that goes on with the run."""
        return {"decided": self._decided, "applied": self.applied}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Do as was decided; weights and optimizer state were loaded before."""
        self._decided, self.applied = state["decided"], state["applied"]
        if self.applied:
            self.apply()

    def works(self, run: Callable[[nn.Module, Any], torch.Tensor], batch: Any) -> bool:
        """Try a forward and backward pass on a copy of the net; random states are kept.

        Args:
            run: computes the loss of a net on a batch.
            batch: one batch, with images of 4 dimensions.
        """

        def run_channels_last(net: nn.Module) -> torch.Tensor:
            twin: Any = net
            twin = twin.to(memory_format=torch.channels_last)
            draw_in_order(twin)
            return run(twin, to_channels_last(clone_tensors(batch)))

        device = next(self.net.parameters()).device
        return layout_works(self.net, run_channels_last, device, dim=4)

    def _convert(self, memory_format: torch.memory_format) -> None:
        for parameter in self.net.parameters():
            if parameter.dim() != 4:
                continue
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
            if parameter.grad is not None:
                parameter.grad = parameter.grad.contiguous(memory_format=memory_format)
            # fused kernels walk weights and state side by side: their memory must agree
            state = getattr(self.optimizer, "state", {}).get(parameter, {})
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[name] = value.contiguous(memory_format=memory_format)


def to_channels_last(batch: Any) -> Any:
    """Return a batch with its 4-dimensional floating-point tensors in channels-last memory."""
    if type(batch) is list or type(batch) is tuple:
        return type(batch)(
            _with_channels_last(part) if is_image_batch(part) else part for part in batch
        )
    return batch


def _with_channels_last(images: torch.Tensor) -> torch.Tensor:
    images = images.contiguous(memory_format=torch.channels_last)
    # with one channel both layouts are the same bytes, and only the strides tell kernels which one
    # to go on with
    _, channels, height, width = images.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return images if images.stride() == strides else images.as_strided(images.shape, strides)


def _has_images(batch: Any) -> bool:
    return type(batch) in (list, tuple) and any(is_image_batch(part) for part in batch)


def is_image_batch(value: Any) -> bool:
    """Tell whether a tensor has the form of a batch of images."""
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point()
