"""The whole state of a training, read without changing it, and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hotloop.checkpoint.run.tree import NotPlainError, encode
from hotloop.errors import CheckpointError
from hotloop.fitting.resume.identity import check_identity, identity_of
from hotloop.fitting.resume.modules import (
    check_module,
    check_tensor,
    read_buffers,
    read_gradients,
    read_module,
    read_optimizer,
    read_requires_grad,
    write_gradients,
    write_module,
    write_optimizer,
    write_requires_grad,
)
from hotloop.fitting.resume.parts import Trained, extras_of, fill_buffers, has_state, tensors_owners


def read_training(model: Trained, scaler: Any) -> dict[str, Any]:
    """Return the state of net, loss, optimizer, scheduler, scaler and the step's extra objects.

    The tensors are the live ones: copy them before the next step.
    """
    state: dict[str, Any] = {
        "identity": identity_of(model),
        "net": read_module(model.net),
        "optimizer": read_optimizer(model.optimizer) if has_state(model.optimizer) else None,
        "scheduler": model.lr_scheduler.state_dict() if has_state(model.lr_scheduler) else None,
        "scaler": None if scaler is None else scaler.state_dict(),
        "extras": {},
        "all_extras": True,  # earlier versions had the arguments that are no containers alone
    }
    owners = tensors_owners(model)
    state["requires_grad"] = {name: read_requires_grad(owner) for name, owner in owners.items()}
    gradients = {name: read_gradients(owner) for name, owner in owners.items()}
    state["gradients"] = gradients.pop("net")
    state["other_gradients"] = {name: found for name, found in gradients.items() if found}
    if isinstance(model.loss_fn, nn.Module):
        state["loss_fn"] = read_module(model.loss_fn)
    for name, part in extras_of(model).items():
        if isinstance(part, nn.Module):
            state["extras"][name] = read_module(part)
        else:
            state["extras"][name] = part if isinstance(part, torch.Tensor) else part.state_dict()
    return state


def read_changing(model: Trained) -> dict[str, Any]:
    """Return copies of what a validation may change: running statistics of net, loss and extras."""
    return {name: read_buffers(owner) for name, owner in tensors_owners(model).items()}


def put_back(training: dict[str, Any], changing: dict[str, Any]) -> None:
    """Make a state what it was when ``read_changing`` was called, in a validation since.

    Args:
        training: of ``read_training``; its tensors are exchanged, and not written to.
        changing: of ``read_changing``.
    """
    for name, before in changing.items():
        place = training if name in ("net", "loss_fn") else training["extras"]
        if isinstance(before, torch.Tensor):
            place[name] = before
        elif before is not None:
            place[name]["tensors"].update(before["tensors"])
            place[name].update({key: before[key] for key in before if key == "extra"})


def write_training(
    model: Trained, scaler: Any, state: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Put a training's state back into the objects that are there.

    Args:
        model: the objects.
        scaler: of the losses; None for none.
        state: of ``read_training``.
        say: takes a line for the user, where they were built otherwise and are changed.

    Raises:
        CheckpointError: it is of another net, loss, optimizer, scheduler or extra object;
            nothing is changed then.
    """
    check_module(model.net, state["net"], "net")
    fill_buffers(model, state["extras"])
    check_identity(model, state["identity"], state.get("all_extras", False))
    if "loss_fn" in state:
        check_module(model.loss_fn, state["loss_fn"], "loss")
    extras = extras_of(model)
    for name, saved in state["extras"].items():
        part = extras.get(name)
        if isinstance(part, nn.Module):
            check_module(part, saved, name)
        elif isinstance(part, torch.Tensor):
            check_tensor(part, saved, name)
    if state["optimizer"] is not None:
        write_optimizer(model.optimizer, state["optimizer"])
    scheduler: Any = model.lr_scheduler
    if state["scheduler"] is not None and has_state(scheduler):
        scheduler.load_state_dict(state["scheduler"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    if "loss_fn" in state:
        write_module(model.loss_fn, state["loss_fn"])
    write_module(model.net, state["net"])
    _write_requires_grad(model, state.get("requires_grad", {}), say)
    write_gradients(model.net, state.get("gradients", {}))
    if "other_gradients" in state:
        for name, owner in tensors_owners(model).items():
            if name != "net":
                write_gradients(owner, state["other_gradients"].get(name, {}))
    for name, saved in state["extras"].items():
        part = extras.get(name)
        if isinstance(part, nn.Module):
            write_module(part, saved)
        elif isinstance(part, torch.Tensor):
            part.detach().copy_(saved)
        elif isinstance(part, torch.optim.Optimizer):
            write_optimizer(part, saved)
        elif part is not None:
            part.load_state_dict(saved)


def _write_requires_grad(
    model: Trained, saved: dict[str, dict[str, bool]], say: Callable[[str], None]
) -> None:
    changed = [
        f"{'.'.join(filter(None, (owner, name)))} ({'trained' if required else 'frozen'})"
        for owner, part in tensors_owners(model).items()
        for name, required in write_requires_grad(part, saved.get(owner, {}))
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        say(f"frozen or trained as in the run, and not as built: {', '.join(changed[:3])}{more}")


def to_plain(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a state as JSON-able data and the tensors in it, which are the live ones.

    Raises:
        CheckpointError: the state holds something that no file can; the message names it.
    """
    try:
        return encode(state)
    except NotPlainError as error:
        raise CheckpointError(
            f"the run cannot be saved: {error}; keep plain values and tensors there, or train "
            f"without resume."
        ) from error


def to_host(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a state as JSON-able data and copies of its tensors on the host.

    On CUDA the copies go to pinned memory behind the work that is queued; who uses them waits for
    ``arrival_of`` first.

    Raises:
        CheckpointError: the state holds something that no file can; the message names it.
    """
    data, tensors = to_plain(state)
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
