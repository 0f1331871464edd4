"""Run a model once and leave it, and every random generator, as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hotloop.data.random_state import RandomStates, read_device_state, restore_device_state
from hotloop.errors import HotloopError, ShapeError
from hotloop.memory import is_out_of_memory
from hotloop.nested import describe


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random numbers back at the end.

    Buffers get back both their tensors and their values, for a forward may change them in place
    or replace them. Lazy layers are an exception: a run initialises them for good.

    PyTorch's fused transformer kernel is off meanwhile: it hides the layers inside it.
    """
    modes = [(module, module.training) for module in model.modules()]
    places = [(module, dict(module._buffers)) for module in model.modules()]
    values = [
        (buffer, buffer.detach().clone()) for buffer in model.buffers() if not is_lazy(buffer)
    ]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    states, device_states = RandomStates.read(), _device_states(model)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes:
            module.training = training
        for module, buffers in places:
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, before in values:
                buffer.copy_(before)
        states.restore()
        for device, state in device_states.items():
            restore_device_state(device, state)


@contextlib.contextmanager
def naming_inputs(positional: list[Any], keywords: dict[str, Any]) -> Iterator[None]:
    """Name the inputs when a model cannot run on them.

    Raises:
        ShapeError: in place of what the model, or torchinfo around it, raised. Out of memory and
            hotloop's own errors pass unchanged.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a forward may raise anything
        cause = _innermost(error)
        if isinstance(cause, HotloopError) or is_out_of_memory(cause):
            raise cause from None
        inputs = [describe(value, f"input {i}") for i, value in enumerate(positional, start=1)]
        inputs += [describe(value, name) for name, value in keywords.items()]
        raise ShapeError(
            f"the model cannot run on {', '.join(inputs)}: {type(cause).__name__}: {cause}; pass "
            f"inputs as its forward takes them, with a batch dimension."
        ) from cause


def main_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU without any."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _innermost(error: Exception) -> BaseException:
    """Return what the model raised, where torchinfo has put an error of its own around it."""
    is_wrapper = str(error).startswith("Failed to run torchinfo")
    return error.__cause__ if is_wrapper and error.__cause__ is not None else error


def _device_states(model: nn.Module) -> dict[torch.device, torch.Tensor]:
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    return {
        device: read_device_state(device)
        for device in devices
        if device.type not in ("cpu", "meta")
    }
