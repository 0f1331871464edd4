"""The whole state of a training, read without changing it, and put back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from hotloop.checkpoint.run.tree import NotPlainError, encode
from hotloop.errors import CheckpointError
from hotloop.fitting.resume.identity import check_identity, identity_of
from hotloop.fitting.resume.modules import (
    check_module,
    read_gradients,
    read_module,
    read_optimizer,
    write_gradients,
    write_module,
    write_optimizer,
)


class Trained(Protocol):
    """What a snapshot needs of the model."""

    net: nn.Module
    loss_fn: Any
    optimizer: Any
    lr_scheduler: Any
    kwargs: dict[str, Any]


def read_training(model: Trained, scaler: Any) -> dict[str, Any]:
    """Return the state of net, loss, optimizer, scheduler, scaler and the step's extra objects.

    The tensors are the live ones: copy them before the next step.
    """
    state: dict[str, Any] = {
        "identity": identity_of(model),
        "net": read_module(model.net),
        "optimizer": read_optimizer(model.optimizer) if _has_state(model.optimizer) else None,
        "scheduler": model.lr_scheduler.state_dict() if _has_state(model.lr_scheduler) else None,
        "scaler": None if scaler is None else scaler.state_dict(),
        "extras": {},
    }
    gradients = read_gradients(model.net)
    if gradients:
        state["gradients"] = gradients
    if isinstance(model.loss_fn, nn.Module):
        state["loss_fn"] = read_module(model.loss_fn)
    for name, value in model.kwargs.items():
        if isinstance(value, nn.Module):
            state["extras"][name] = read_module(value)
        elif isinstance(value, torch.Tensor):
            state["extras"][name] = value
        elif _has_state(value):
            state["extras"][name] = value.state_dict()
    return state


def write_training(model: Trained, scaler: Any, state: dict[str, Any]) -> None:
    """Put a training's state back into the objects that are there.

    Raises:
        CheckpointError: it is of another net, loss, optimizer, scheduler or extra object;
            nothing is changed then.
    """
    check_module(model.net, state["net"], "net")
    check_identity(model, state["identity"])
    if "loss_fn" in state:
        check_module(model.loss_fn, state["loss_fn"], "loss")
    for name, saved in state["extras"].items():
        if isinstance(model.kwargs.get(name), nn.Module):
            check_module(model.kwargs[name], saved, name)
    if state["optimizer"] is not None:
        write_optimizer(model.optimizer, state["optimizer"])
    scheduler: Any = model.lr_scheduler
    if state["scheduler"] is not None and _has_state(scheduler):
        scheduler.load_state_dict(state["scheduler"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    if "loss_fn" in state:
        write_module(model.loss_fn, state["loss_fn"])
    write_module(model.net, state["net"])
    write_gradients(model.net, state.get("gradients", {}))
    for name, saved in state["extras"].items():
        value = model.kwargs.get(name)
        if isinstance(value, nn.Module):
            write_module(value, saved)
        elif isinstance(value, torch.Tensor):
            value.detach().copy_(saved)
        elif isinstance(value, torch.optim.Optimizer):
            write_optimizer(value, saved)
        elif value is not None and _has_state(value):
            value.load_state_dict(saved)


def to_host(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a state as JSON-able data and copies of its tensors on the host.

    On CUDA the copies go to pinned memory behind the work that is queued; who uses them waits for
    ``arrival_of`` first.

    Raises:
        CheckpointError: the state holds something that no file can; the message names it.
    """
    try:
        data, tensors = encode(state)
    except NotPlainError as error:
        raise CheckpointError(
            f"the run cannot be saved: {error}; keep plain values and tensors there, or train "
            f"without resume."
        ) from error
    return data, {name: _copy(tensor) for name, tensor in tensors.items()}


def arrival_of(device: torch.device) -> Any:
    """Return an event behind the copies queued so far; None where copies are done at once."""
    if device.type != "cuda":
        return None
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cuda":
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)
    if tensor.device.type != "cpu":
        return tensor.cpu()  # sync: other backends have no such copy in all versions
    return tensor.clone(memory_format=torch.contiguous_format)


def _has_state(value: Any) -> bool:
    return (
        not isinstance(value, type)
        and callable(getattr(value, "state_dict", None))
        and callable(getattr(value, "load_state_dict", None))
    )
