"""Optimizers and schedulers of custom step runners, which act where a group of batches ends."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Gate(Protocol):
    """What is needed of an ``Accelerator``."""

    sync_gradients: bool

    def optimizer_step(self, optimizer: Any) -> None:
        """Step the optimizer, through the loss scaler where there is one."""


class GatedOptimizer(torch.optim.Optimizer):
    """The user's optimizer for custom step runners under accumulation or a loss scaler.

    They call ``step`` and ``zero_grad`` after every batch; those act only where a group of
    batches ends, and ``step`` goes through the loss scaler. Everything else is the user's own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, accelerator: Gate) -> None:
        # no super().__init__: this holds no parameters of its own
        self._optimizer = optimizer
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_optimizer"], name)

    @property
    def bare(self) -> torch.optim.Optimizer:
        """The user's optimizer."""
        return self._optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        """The user's optimizer's own groups."""
        return self._optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The user's optimizer's own state."""
        return self._optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """Return the user's optimizer's state dict."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the user's optimizer."""
        self._optimizer.load_state_dict(state_dict)

    def step(self, closure: Any = None) -> Any:
        """Step where a group of batches ends; a closure has no place in such a group."""
        del closure
        if self._accelerator.sync_gradients:
            self._accelerator.optimizer_step(self._optimizer)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients where a group of batches ends."""
        if self._accelerator.sync_gradients:
            self._optimizer.zero_grad(set_to_none=set_to_none)

    def __repr__(self) -> str:
        return repr(self._optimizer)


class GatedScheduler:
    """The user's scheduler for custom step runners: steps only where a group of batches ends."""

    def __init__(self, scheduler: Any, accelerator: Gate) -> None:
        self._scheduler = scheduler
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_scheduler"], name)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step where a group of batches ends."""
        if self._accelerator.sync_gradients:
            self._scheduler.step(*args, **kwargs)
