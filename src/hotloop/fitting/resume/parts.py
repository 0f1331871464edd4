"""The objects of a training that have a state, beside its optimizer and scheduler, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

# of KerasModel itself, which are saved as such or are no part of the training
_OWN_ATTRIBUTES = frozenset(
    ("net", "loss_fn", "metrics_dict", "optimizer", "lr_scheduler", "kwargs", "history")
)
_MAX_LEAVES = 10_000  # of a list or dict that are looked at: longer ones are data


class Trained(Protocol):
    """What a snapshot needs of the model."""

    net: nn.Module
    loss_fn: Any
    optimizer: Any
    lr_scheduler: Any
    kwargs: dict[str, Any]


def extras_of(model: Trained) -> dict[str, Any]:
    """Return what the training has beside net, loss, optimizer and scheduler.

    These are the extra arguments of ``KerasModel`` (``teacher``, ``nets[0]``, ``opts['d']``), and
    the modules, parameters, buffers, optimizers and schedulers that a subclass holds
    (``model.teacher``).

    Args:
        model: a ``KerasModel``.

    Returns:
        Modules, tensors and objects with ``state_dict`` and ``load_state_dict``, each once.
    """
    found: dict[str, Any] = {}
    seen = {id(part) for part in (model.net, model.loss_fn, model.optimizer, model.lr_scheduler)}

    def add(name: str, value: Any, wanted: Callable[[Any], bool]) -> None:
        for path, leaf in islice(_leaves(name, value, set()), _MAX_LEAVES):
            if wanted(leaf) and id(leaf) not in seen:
                seen.add(id(leaf))
                found[path] = leaf

    for name, value in model.kwargs.items():
        add(name, value, _is_part)
    if not isinstance(model, nn.Module):
        return found
    registered = {**model._modules, **model._parameters, **model._buffers}
    for name, value in registered.items():
        if name not in _OWN_ATTRIBUTES:
            add(f"model.{name}", value, _is_part)
    for name, value in vars(model).items():
        if name not in _OWN_ATTRIBUTES and not name.startswith("_"):
            add(f"model.{name}", value, _is_optimizer)
    return found


def fill_buffers(model: Trained, extras: dict[str, Any]) -> None:
    """Make the buffers that a subclass registered as None, and its steps then made."""
    device = next((parameter.device for parameter in model.net.parameters()), None)
    buffers = model._buffers if isinstance(model, nn.Module) else {}
    for name, buffer in buffers.items():
        saved = extras.get(f"model.{name}")
        if buffer is None and isinstance(saved, torch.Tensor):
            buffers[name] = saved.to(device, copy=True)


def tensors_owners(model: Trained) -> dict[str, nn.Module | torch.Tensor]:
    """Return net, loss and those extras that are modules or tensors."""
    owners = {"net": model.net, "loss_fn": model.loss_fn, **extras_of(model)}
    return {n: part for n, part in owners.items() if isinstance(part, (nn.Module, torch.Tensor))}


def leaves_of(owner: nn.Module | torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what may have a gradient: a module's parameters, or a tensor itself, named ""."""
    if isinstance(owner, nn.Module):
        yield from owner.named_parameters()
    elif owner.is_leaf:
        yield "", owner


def has_state(value: Any) -> bool:
    """Tell whether a value can be asked for its state, and given one."""
    return (
        not isinstance(value, type)
        and callable(getattr(value, "state_dict", None))
        and callable(getattr(value, "load_state_dict", None))
    )


def _is_part(value: Any) -> bool:
    return isinstance(value, (nn.Module, torch.Tensor)) or has_state(value)


def _is_optimizer(value: Any) -> bool:
    # all else that a plain attribute holds (a loader, say) may be no part of the training
    return isinstance(value, (torch.optim.Optimizer, LRScheduler))


def _leaves(name: str, value: Any, outer: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield what lists, tuples and dicts hold, with where it is."""
    if not isinstance(value, (list, tuple, dict)):
        yield name, value
    elif id(value) not in outer:  # else it holds itself
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(f"{name}[{key!r}]", part, outer | {id(value)})
