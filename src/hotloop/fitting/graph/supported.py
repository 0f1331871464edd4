"""What no graph serves, whatever its form."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hotloop.distributed.processes import world_size
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.graph.declined import DeclinedError, UpdateError
from hotloop.fitting.graph.updates import check_updatable


def check_supported(net: nn.Module, loss_fn: Any, accelerator: Accelerator, optimizer: Any) -> None:
    """Refuse what no graph serves.

    Args:
        net: of the step.
        loss_fn: as ``KerasModel`` has it.
        accelerator: of the run.
        optimizer: of a training step; None for forward and loss alone.

    Raises:
        DeclinedError: says what.
    """
    if world_size() > 1:
        raise DeclinedError("several processes train together")
    if _is_compiled(net):
        raise DeclinedError("the net is compiled already")
    for part in net.modules():
        if _is_compiled(part):
            inner = getattr(part, "_orig_mod", part)
            raise DeclinedError(f"a part of the net ({type(inner).__name__}) is compiled already")
    if optimizer is None:
        return
    if any(map(_is_sparse, net.modules())):
        raise DeclinedError("an embedding makes sparse gradients, which no graph holds")
    if accelerator.device.type == "cpu" and any(p.is_complex() for p in net.parameters()):
        raise DeclinedError("the net has complex parameters, which Inductor has no code for")
    left = 0
    if hasattr(optimizer, "param_groups"):  # else nobody knows what it holds
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = loss_fn.parameters() if isinstance(loss_fn, nn.Module) else ()
        others = [p for p in [*net.parameters(), *own] if id(p) not in held]
        left = sum(p.requires_grad and p.grad is not None for p in others)
    if left:
        raise DeclinedError(
            f"the optimizer does not hold {left} parameters that gather gradients; "
            f"requires_grad_(False) freezes them"
        )
    if accelerator.scaler is not None and accelerator.device.type == "cpu":
        raise DeclinedError("fp16 scales the loss; bf16 can be compiled")
    Hooks(net, loss_fn).check()


def _is_compiled(module: nn.Module) -> bool:
    """Tell of ``torch.compile``, ``module.compile()`` and TorchScript."""
    is_compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
    return is_compiled or isinstance(module, torch.jit.ScriptModule)


def _is_sparse(module: nn.Module) -> bool:
    if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return False
    return bool(module.sparse) and module.weight.requires_grad


def why_gradients_alone(accelerator: Accelerator, optimizer: Any) -> str | None:
    """Return why a graph ends with the gradients; None where the update has a place in it."""
    if accelerator.gradient_accumulation_steps > 1:
        return "gradients are accumulated over several batches"
    if accelerator.scaler is not None:
        return "fp16 scales the loss"
    try:
        check_updatable(optimizer)
    except UpdateError as error:
        return str(error)
    return None


class Hooks:
    """Looks for hooks that a graph would not call, on the modules and parameters of a step.

    Args:
        net: of the step.
        loss_fn: as ``KerasModel`` has it.
    """

    def __init__(self, net: nn.Module, loss_fn: Any) -> None:
        self._modules = list(net.modules())
        self._modules += list(loss_fn.modules()) if isinstance(loss_fn, nn.Module) else []
        self._parameters = [p for m in self._modules for p in m.parameters(recurse=False)]

    def check(self) -> None:
        """Refuse them.

        Raises:
            DeclinedError: says which.
        """
        for module in self._modules:
            if module._backward_hooks or module._backward_pre_hooks:
                raise DeclinedError(f"{type(module).__name__} has backward hooks")
        for parameter in self._parameters:
            if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
                raise DeclinedError("a parameter has gradient hooks")
