"""The tensors and settings of modules and optimizers: read, and put back in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hotloop.errors import CheckpointError
from hotloop.fitting.resume.metrics import snapshot_of
from hotloop.fitting.resume.parts import leaves_of

_KEPT_SETTINGS = ("fused", "foreach", "capturable", "differentiable")


def read_module(module: nn.Module) -> dict[str, Any]:
    """Return every parameter and buffer, also those that are not in the state dict.

    A module's extra state (``get_extra_state``) comes along; other Python attributes do not.
    """
    state: dict[str, Any] = {"tensors": dict(_named_tensors(module))}
    extra = _read_extra(module)
    if extra:
        state["extra"] = extra
    return state


def read_buffers(owner: nn.Module | torch.Tensor) -> Any:
    """Return copies of what a forward pass alone may change, in the form of ``read_module``.

    These are a module's buffers and its extra state, or a tensor that is no parameter.
    """
    if isinstance(owner, nn.Parameter):
        return None
    if isinstance(owner, torch.Tensor):
        return owner.detach().clone()
    buffers = owner.named_buffers(remove_duplicate=False)
    state: dict[str, Any] = {"tensors": {name: b.detach().clone() for name, b in buffers}}
    extra = _read_extra(owner)
    if extra:
        state["extra"] = snapshot_of(extra)
    return state


def _read_extra(module: nn.Module) -> dict[str, Any]:
    return {
        name: part.get_extra_state()
        for name, part in module.named_modules()
        if type(part).get_extra_state is not nn.Module.get_extra_state
    }


def check_module(module: nn.Module, state: dict[str, Any], what: str) -> None:
    """Refuse the state of another module.

    Raises:
        CheckpointError: names or shapes differ; the message names them.
    """
    own = {name: tuple(tensor.shape) for name, tensor in _named_tensors(module)}
    saved = {name: tuple(tensor.shape) for name, tensor in state["tensors"].items()}
    wrong = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"the run's checkpoint is of another {what}: '{name}' is {saved.get(name, 'missing')} "
            f"there and {own.get(name, 'missing')} here ({len(wrong)} such differences); build the "
            f"{what} as it was, or pass another ckpt_path."
        )


def check_tensor(tensor: torch.Tensor, saved: Any, what: str) -> None:
    """Refuse the state of another tensor.

    Raises:
        CheckpointError: shapes differ.
    """
    shape = tuple(saved.shape) if isinstance(saved, torch.Tensor) else "no tensor"
    if shape != tuple(tensor.shape):
        raise CheckpointError(
            f"the run's checkpoint is of another {what}: it is {shape} there and "
            f"{tuple(tensor.shape)} here; build it as it was, or pass another ckpt_path."
        )


def write_module(module: nn.Module, state: dict[str, Any]) -> None:
    """Copy values into the module's own tensors, which stay the same objects."""
    with torch.no_grad():
        for name, tensor in _named_tensors(module):
            tensor.copy_(state["tensors"][name])
    parts = dict(module.named_modules())
    for name, extra in state.get("extra", {}).items():
        parts[name].set_extra_state(extra)


def read_gradients(owner: nn.Module | torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients that are there: of an unfinished group of batches."""
    return {name: leaf.grad for name, leaf in leaves_of(owner) if leaf.grad is not None}


def write_gradients(owner: nn.Module | torch.Tensor, gradients: dict[str, torch.Tensor]) -> None:
    """Put gradients back."""
    for name, leaf in leaves_of(owner):
        gradient = gradients.get(name)
        leaf.grad = None if gradient is None else gradient.to(leaf.device)


def read_requires_grad(owner: nn.Module | torch.Tensor) -> dict[str, bool]:
    """Return which parameters are trained: a callback may freeze and thaw them."""
    return {name: leaf.requires_grad for name, leaf in leaves_of(owner)}


def write_requires_grad(
    owner: nn.Module | torch.Tensor, saved: dict[str, bool]
) -> list[tuple[str, bool]]:
    """Freeze and thaw parameters; return those that were changed, and whether they are trained."""
    changed = [
        (name, saved[name])
        for name, leaf in leaves_of(owner)
        if saved.get(name, leaf.requires_grad) != leaf.requires_grad
    ]
    leaves = dict(leaves_of(owner))
    for name, required in changed:
        leaves[name].requires_grad_(required)
    return changed


def read_optimizer(optimizer: Any) -> Any:
    """Return an optimizer's state dict."""
    return optimizer.state_dict()


def write_optimizer(optimizer: Any, state: Any) -> None:
    """Load an optimizer's state; how it computes (``fused`` and such) stays as it is set here.

    torch's own loading casts state to the parameters' dtype; the saved dtypes are put back.

    Raises:
        CheckpointError: it is the state of another optimizer.
    """
    groups = getattr(optimizer, "param_groups", [])
    kept = [{name: g[name] for name in _KEPT_SETTINGS if name in g} for g in groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the run's checkpoint is of another optimizer ({error}): build it as it was, or pass "
            f"another ckpt_path."
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, saved in state["state"].items():
        own = optimizer.state[parameters[index]]
        for name, value in saved.items():
            if isinstance(value, torch.Tensor) and isinstance(own.get(name), torch.Tensor):
                own[name] = value.detach().clone().to(own[name].device)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
