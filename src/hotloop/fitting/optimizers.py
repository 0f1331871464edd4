"""The user's optimizer and scheduler: do they belong to the net, and how do they step?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from hotloop.errors import OptimizerError


def check_optimizer(optimizer: Any, net: nn.Module, others: Iterable[Any] = ()) -> None:
    """Refuse an optimizer that cannot train this net.

    Args:
        optimizer: anything with ``step`` and ``zero_grad``; its ``param_groups`` are looked at
            where it has them.
        net: the net.
        others: further modules whose parameters it may hold (a loss with weights of its own).

    Raises:
        OptimizerError: it holds none of the net's parameters, or parameters of something else.
    """
    if isinstance(optimizer, type):
        raise OptimizerError(
            f"optimizer is the class {optimizer.__name__}, not an object of it: write "
            f"{optimizer.__name__}(net.parameters(), lr=...)."
        )
    for method in ("step", "zero_grad"):
        if not callable(getattr(optimizer, method, None)):
            raise OptimizerError(
                f"optimizer is a {type(optimizer).__name__} without {method}(): pass for instance "
                f"torch.optim.Adam(net.parameters(), lr=0.01)."
            )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise OptimizerError(
            "optimizer is LBFGS, which computes the loss several times a step: train it through "
            "a StepRunner of your own, or pass a first-order optimizer such as Adam."
        )
    held = [p for group in getattr(optimizer, "param_groups", []) for p in group["params"]]
    if not held:
        return
    own = {id(parameter) for parameter in net.parameters()}
    foreign = [parameter for parameter in held if id(parameter) not in own]
    if len(foreign) == len(held):
        raise OptimizerError(
            f"the optimizer holds {len(held)} parameters and none of them is the net's: build it "
            f"from this net, {type(optimizer).__name__}(net.parameters(), ...), after the net."
        )
    allowed = {
        id(parameter)
        for module in others
        if isinstance(module, nn.Module)
        for parameter in module.parameters()
    }
    strange = [parameter for parameter in foreign if id(parameter) not in allowed]
    if strange:
        raise OptimizerError(
            f"{len(strange)} of the optimizer's {len(held)} parameters belong neither to the net "
            f"nor to the loss (the first has shape {tuple(strange[0].shape)}): build the "
            f"optimizer from net.parameters()."
        )


def check_scheduler(lr_scheduler: Any, optimizer: Any) -> None:
    """Refuse a scheduler that steers another optimizer.

    Raises:
        OptimizerError: its optimizer is not this one.
    """
    steered = getattr(lr_scheduler, "optimizer", None)
    if isinstance(steered, torch.optim.Optimizer) and steered is not optimizer:
        raise OptimizerError(
            "lr_scheduler was built on another optimizer, so it would change nothing here: build "
            "it on the optimizer that you pass to KerasModel."
        )


def check_scheduler_steps(lr_scheduler: Any) -> None:
    """Refuse a scheduler that hotloop's own step cannot step.

    Raises:
        OptimizerError: it is a class, or has no ``step``.
    """
    if isinstance(lr_scheduler, type):
        raise OptimizerError(
            f"lr_scheduler is the class {lr_scheduler.__name__}, not an object of it: write "
            f"{lr_scheduler.__name__}(optimizer, ...)."
        )
    if lr_scheduler is not None and not callable(getattr(lr_scheduler, "step", None)):
        raise OptimizerError(
            f"lr_scheduler is a {type(lr_scheduler).__name__} without step(): pass for instance "
            f"torch.optim.lr_scheduler.StepLR(optimizer, 10), or None."
        )


def move_optimizer_state(optimizer: Any, device: torch.device) -> None:
    """Move the optimizer's state to where its parameters are.

    Step counters that are tensors of the CPU by design (Adam's without ``capturable``) stay there,
    as ``Optimizer.load_state_dict`` would put them.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and (name != "step" or value.device.type != "cpu"):
                state[name] = value.to(parameter.device if parameter.numel() else device)


def current_lr(optimizer: Any) -> float:
    """Return the learning rate of the first parameter group; 0 where there is none."""
    groups = getattr(optimizer, "param_groups", None)
    return float(groups[0].get("lr", 0.0)) if groups else 0.0


def steps_plainly(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether ``optimizer.step()`` is torch's own code and nothing else: no hook runs with it.

    A scheduler wraps ``step`` to count its calls; that is no other code.
    """
    own_step = optimizer.__dict__.get("step")
    return (
        (own_step is None or hasattr(own_step, "_wrapped_by_lr_sched"))
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and not torch_optimizer._global_optimizer_pre_hooks
        and not torch_optimizer._global_optimizer_post_hooks
    )


def runs_own_code(optimizer: Any) -> bool:
    """Tell whether a step runs code of the user's: an optimizer of their own, or hooks on it."""
    if not type(optimizer).__module__.startswith("torch.optim."):
        return True
    return "zero_grad" in optimizer.__dict__ or not steps_plainly(optimizer)


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's elements lie without gaps, each once, in whatever order."""
    pairs = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    expected = 1
    for count, stride in sorted(pairs, key=lambda pair: pair[1]):
        if stride != expected:
            return False
        expected *= count
    return True


def follows_score(lr_scheduler: Any) -> bool:
    """Tell whether a scheduler takes the monitored score (``ReduceLROnPlateau``)."""
    return isinstance(lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
