"""What a fit needs of the model that it trains, and small things done to it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hotloop.fitting.step import StepRunner
from hotloop.memory import naming_memory
from hotloop.nested import iterate_modules
from hotloop.timing.report import MeasuredPeak


class Trainable(Protocol):
    """What a run needs of the model that it trains."""

    net: nn.Module
    loss_fn: Any
    metrics_dict: Any
    optimizer: Any
    lr_scheduler: Any
    kwargs: dict[str, Any]
    history: dict[str, list[Any]]
    best_score: float | None
    best_epoch: int
    skipped_steps: list[tuple[int, int, str]]
    skipped_samples: list[tuple[Any, str]]
    accelerator: Any
    stop_training: bool
    measured_peak: MeasuredPeak | None
    StepRunner: type[Any]
    EpochRunner: type[Any]

    def save_ckpt(self, ckpt_path: Any = None) -> None:
        """Save the weights."""

    def load_ckpt(self, ckpt_path: Any = None) -> None:
        """Load the weights."""


def place(model: Trainable, device: torch.device) -> None:
    """Move net, loss, metrics and the extra arguments of step runners to ``device``.

    Of arguments that are lists, tuples and dicts, the modules in them.
    """
    num_bytes = sum(p.nbytes for p in model.net.parameters() if not is_lazy(p))
    with naming_memory(
        f"the net, {num_bytes / 2**20:,.0f} MiB, does not fit the memory of {device}",
        "end what else uses that device, use a smaller net, or cpu=True",
    ):
        model.net.to(device)
    model.metrics_dict.to(device)
    if isinstance(model.loss_fn, nn.Module):
        model.loss_fn.to(device)
    for name, value in model.kwargs.items():
        if isinstance(value, torch.Tensor):
            model.kwargs[name] = value.to(device)
        for module in iterate_modules(value):
            module.to(device)


def parameters_beside_net(model: Trainable) -> list[tuple[str, torch.Tensor]]:
    """Return names and parameters of the loss, of extra modules, and of the optimizer alone."""
    known = {id(p) for p in model.net.parameters()}
    found: list[tuple[str, torch.Tensor]] = []

    def add(name: str, parameter: torch.Tensor) -> None:
        if id(parameter) not in known:
            known.add(id(parameter))
            found.append((name, parameter))

    for name, value in {"loss_fn": model.loss_fn, **model.kwargs}.items():
        for module in iterate_modules(value):
            for inner, parameter in module.named_parameters():
                add(f"{name}.{inner}", parameter)
    for number, group in enumerate(getattr(model.optimizer, "param_groups", ())):
        for index, parameter in enumerate(group["params"]):
            add(f"parameter {index} of the optimizer's group {number}", parameter)
    return found


def is_step_runner(runner: Any) -> bool:
    """Tell whether step runners are hotloop's or derived from them; users may pass any callable."""
    return isinstance(runner, type) and issubclass(runner, StepRunner)


def saves_its_own(model: Trainable) -> bool:
    """Tell whether ``save_ckpt`` is the user's own, which may write a folder."""
    return type(model).save_ckpt.__module__ != "hotloop.model" or "save_ckpt" in vars(model)


def saver_of(model: Trainable, accelerator: Any) -> Callable[[Any], None]:
    """Return ``save_ckpt``, which is given the accelerator where it takes one, as torchkeras does.

    Args:
        model: whose weights are saved.
        accelerator: of the run.
    """

    def save(path: Any) -> None:
        keywords = {"accelerator": accelerator} if takes_accelerator(model.save_ckpt) else {}
        model.save_ckpt(path, **keywords)

    return save


def takes_accelerator(function: Callable[..., Any]) -> bool:
    """Tell whether a function takes a keyword argument of that name."""
    parameters = inspect.signature(function).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return "accelerator" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def is_users_own(model: Trainable) -> bool:
    """Tell whether the step is the user's own code, of which nothing is known."""
    runner = model.StepRunner
    if not is_step_runner(runner):
        return True
    return runner.__call__ is not StepRunner.__call__ or runner.optimize is not StepRunner.optimize


def add_values(history: dict[str, list[Any]], values: dict[str, Any]) -> None:
    """Add an epoch's values to the history's columns."""
    num_rows = max(len(history.get("epoch", [])), 1)
    for name, value in values.items():
        column = history.setdefault(name, [])
        if name != "epoch":
            # a column that some epochs lack keeps its rows in step with the others
            column.extend([float("nan")] * (num_rows - 1 - len(column)))
        column.append(value)


@contextlib.contextmanager
def bare_net(model: Trainable) -> Iterator[None]:
    """Let callbacks have the user's own net of several processes: its class, its parts, a copy."""
    wrapped = model.net
    model.net = bare = wrapped.module  # type: ignore[assignment]
    try:
        yield
    finally:
        if model.net is bare:
            model.net = wrapped


def call_hooks(callbacks: Sequence[Any], hook: str, model: Any) -> None:
    """Call a hook of every callback that has it."""
    for callback in callbacks:
        method = getattr(callback, hook, None)
        if method is not None:
            method(model=model)


def tell_of_error(callbacks: Sequence[Any], model: Any, error: BaseException) -> None:
    """Call ``on_fit_error`` of every callback; what one raises becomes a note of the error."""
    for callback in callbacks:
        try:
            call_hooks([callback], "on_fit_error", model)
        except Exception as raised:  # noqa: BLE001 - the first error is the one to tell
            error.add_note(f"on_fit_error of {type(callback).__name__} raised {raised!r}")
