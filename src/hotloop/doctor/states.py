"""Leave everything as it was: random states of all kinds, modes, gradients, data sets."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hotloop.data.purity import DatasetAttributes, _parts
from hotloop.data.random_state import RandomStates
from hotloop.hardware import accelerator_available

_MAX_DEPTH, _MAX_OBJECTS = 6, 10_000


@contextlib.contextmanager
def untouched(model: nn.Module, *owners: Any) -> Iterator[None]:
    """Put back at the end what trials on copies may have moved.

    Random states: torch's, of each device too, Python's, numpy's, and every generator that
    ``model`` or the ``owners`` hold. Then modules' training modes and gradients, the attributes
    of data sets, torch's number of threads.

    Args:
        model: whose copies are tried.
        *owners: loaders, data sets, callbacks, a transform.
    """
    states, devices = RandomStates.read(), _device_states()
    restores = [restore for owner in (model, *owners) for restore in _generator_states(owner)]
    attributes = [
        DatasetAttributes.read(dataset)
        for dataset in (getattr(owner, "dataset", owner) for owner in owners)
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__dict__")
    ]
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training
        for held in attributes:
            held.restore()
        for restore in restores:
            restore()
        for set_state, arguments in devices:
            set_state(*arguments)
        states.restore()


def _device_states() -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    if not accelerator_available():
        return []
    accelerator = torch.accelerator.current_accelerator()
    module: Any = torch.get_device_module(accelerator)
    if accelerator is not None and accelerator.type == "mps":
        return [(module.set_rng_state, (module.get_rng_state(),))]
    return [
        (module.set_rng_state, (module.get_rng_state(index), index))
        for index in range(torch.accelerator.device_count())
    ]


def _generator_states(owner: Any) -> list[Callable[[], Any]]:
    """Return calls that put every generator back that ``owner`` holds, some levels deep."""
    restores: list[Callable[[], Any]] = []
    seen: set[int] = set()
    kept: list[Any] = []  # so that no id is used twice
    pending: list[tuple[Any, int]] = [(owner, 0)]
    while pending and len(seen) < _MAX_OBJECTS:
        value, depth = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        kept.append(value)
        restore = _restore_of(value)
        if restore is not None:
            restores.append(restore)
        elif depth < _MAX_DEPTH:
            pending += [(part, depth + 1) for _, part in _parts(value)]
    return restores


def _restore_of(value: Any) -> Callable[[], Any] | None:
    numpy: Any = sys.modules.get("numpy")
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, random.Random):
        python_state = value.getstate()
        return lambda: value.setstate(python_state)
    if numpy is not None and isinstance(value, numpy.random.RandomState):
        numpy_state = value.get_state()
        return lambda: value.set_state(numpy_state)
    if numpy is not None and isinstance(value, numpy.random.Generator):
        bits = copy.deepcopy(value.bit_generator.state)
        return lambda: setattr(value.bit_generator, "state", bits)
    return None
