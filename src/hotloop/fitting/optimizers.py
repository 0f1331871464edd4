"""The user's optimizer and scheduler: do they belong to the net, and how do they step?"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import optimizer as torch_optimizer
from torch.optim.lr_scheduler import OneCycleLR

from hotloop.errors import OptimizerError
from hotloop.nested import iterate_modules


def check_optimizer(optimizer: Any, net: nn.Module, others: Iterable[Any] = ()) -> None:
    """Refuse an optimizer that cannot train this net.

    Args:
        optimizer: anything with ``step`` and ``zero_grad``; its ``param_groups`` are looked at
            where it has them.
        net: the net.
        others: further modules whose parameters it may hold (a loss with weights of its own), also
            nested in lists and dicts.

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
            further = ""
            if isinstance(optimizer, (list, tuple, dict)):
                further = ", and further optimizers to your StepRunner as keyword arguments"
            raise OptimizerError(
                f"optimizer is a {type(optimizer).__name__} without {method}(): pass for instance "
                f"torch.optim.Adam(net.parameters(), lr=0.01){further}."
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
        for module in iterate_modules(list(others))
        for parameter in module.parameters()
    }
    strange = [parameter for parameter in foreign if id(parameter) not in allowed]
    if strange:
        raise OptimizerError(
            f"{len(strange)} of the optimizer's {len(held)} parameters belong neither to the net "
            f"nor to the loss (the first has shape {tuple(strange[0].shape)}): build the "
            f"optimizer from net.parameters(), or pass the module that they are of as a keyword "
            f"argument of KerasModel."
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
    needed = _required_arguments(lr_scheduler)
    if needed and not (follows_score(lr_scheduler) or takes_numbers(lr_scheduler)):
        raise OptimizerError(
            f"step() of {type(lr_scheduler).__name__} needs {', '.join(needed)}, and fit calls it "
            f"without arguments: pass a scheduler whose step() needs none, or step it in a "
            f"callback's on_train_epoch_end."
        )


def _required_arguments(lr_scheduler: Any) -> list[str]:
    """Return the names of what ``step`` cannot be called without."""
    try:
        parameters = inspect.signature(lr_scheduler.step).parameters.values()
    except (AttributeError, TypeError, ValueError):  # None, or without a signature
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


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
    rate = groups[0].get("lr") if groups else None  # None: transformers' Adafactor makes its own
    return 0.0 if rate is None else float(rate)


def set_rates(optimizer: Any, rates: Iterable[float]) -> None:
    """Set the learning rate of each parameter group, in place where it is a tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


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


@contextlib.contextmanager
def unfused_where_refused(optimizer: Any) -> Iterator[None]:
    """Step those groups without the fused kernel, inside the block, whose gradients it refuses.

    That are sparse gradients, and in SGD a parameter's first gradient after others had theirs.
    """
    groups = [
        group
        for group in getattr(optimizer, "param_groups", ())
        if group.get("fused") and _is_refused(optimizer, group)
    ]
    for group in groups:
        group["fused"] = False
    try:
        yield
    finally:
        for group in groups:
            group["fused"] = True


def _is_refused(optimizer: Any, group: dict[str, Any]) -> bool:
    params = [p for p in group["params"] if p.grad is not None]
    if any(p.grad.is_sparse for p in params):
        return True
    if type(optimizer) is not torch.optim.SGD or not group["momentum"]:
        return False
    has = [optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in params]
    return any(has) and not all(has)


def has_users_function(lr_scheduler: Any) -> bool:
    """Tell whether a scheduler calls a function of the user's: one of their own, or a lambda."""
    parts = getattr(lr_scheduler, "_schedulers", None)
    if parts is not None and type(lr_scheduler).__module__.startswith("torch."):
        return any(map(has_users_function, parts))
    if not type(lr_scheduler).__module__.startswith(("torch.", "builtins")):
        return True
    called = getattr(lr_scheduler, "_scale_fn_custom", None)  # of CyclicLR
    return called is not None or hasattr(lr_scheduler, "lr_lambdas")


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's elements lie without gaps, each once, in whatever order."""
    if is_lazy(tensor):  # it has no elements yet
        return False
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


def takes_numbers(lr_scheduler: Any) -> bool:
    """Tell whether a scheduler is told the number of epochs and of updates, as timm's are.

    These have ``step(epoch)``, called once an epoch, and ``step_update(num_updates)``, called with
    every update; only one of them changes anything, as the scheduler was made.
    """
    return callable(getattr(lr_scheduler, "step_update", None)) and bool(
        _required_arguments(lr_scheduler)
    )


def step_scheduler(scheduler: Any) -> None:
    """Step a scheduler after an update.

    Raises:
        OptimizerError: it was made for fewer steps.
    """
    if takes_numbers(scheduler):
        # kept with the scheduler, whose state is all of its attributes
        scheduler.num_updates = getattr(scheduler, "num_updates", 0) + 1
        scheduler.step_update(scheduler.num_updates)
        return
    try:
        scheduler.step()
    except ValueError as error:
        if "Tried to step" not in str(error):
            raise
        raise OptimizerError(
            f"{type(scheduler).__name__} is over after {scheduler.total_steps:,} steps, and the "
            f"training goes on: give it total_steps=epochs * len(train_data), or fewer epochs to "
            f"fit."
        ) from error


def step_after_epoch(scheduler: Any, epoch: int, score: float, per_epoch: bool) -> None:
    """Step a scheduler at an epoch's end, if that is its time.

    Args:
        scheduler: None for none.
        epoch: counted from 1.
        score: of the epoch.
        per_epoch: whether it is one of epochs, where it does not show that itself.
    """
    if follows_score(scheduler):
        scheduler.step(score)
    elif takes_numbers(scheduler):
        scheduler.step(epoch, score)
    elif scheduler is not None and per_epoch:
        step_scheduler(scheduler)


def wrong_interval(
    scheduler: Any, interval: str, epochs: int, num_batches: int | None, accumulated: int = 1
) -> tuple[str, str] | None:
    """Tell of a scheduler whose length is counted in epochs and stepped by batches, or vice versa.

    Args:
        scheduler: of torch; None for none.
        interval: "step" or "epoch".
        epochs: of the fit.
        num_batches: an epoch; None when unknown.
        accumulated: batches that make one step.

    Returns:
        What is wrong, and how to mend it; None where nothing is known to be.
    """
    if scheduler is None or follows_score(scheduler) or not num_batches:
        return None
    length = next(
        (
            getattr(scheduler, name)
            for name in ("total_steps", "T_max", "total_iters", "step_size")
            if isinstance(getattr(scheduler, name, None), int)
        ),
        None,
    )
    if length is None:
        return None
    steps, name = num_batches * epochs // accumulated, type(scheduler).__name__
    if interval == "step" and num_batches > 1 and length <= epochs:
        text = f"{name} is made for {length} steps and stepped {steps:,} times, with every batch"
        return text, "Pass scheduler_interval='epoch'."
    if interval == "step" and isinstance(scheduler, OneCycleLR) and length < steps:
        text = f"{name} is made for {length:,} steps and stepped {steps:,} times, and then raises"
        return text, f"Give it total_steps={steps}."
    if interval == "epoch" and length > 2 * epochs:
        text = f"{name} is made for {length:,} steps and stepped {epochs} times, once an epoch"
        return text, "Pass scheduler_interval='step'."
    return None
