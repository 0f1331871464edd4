"""What a run decided by measuring or trying, which the process that goes on must not ask again."""

from __future__ import annotations

from typing import Any, Protocol

import torch

_DECIDERS = ("threads", "layout", "narrow_inputs", "graph", "val_graph")


class Run(Protocol):
    """What the keeper needs of a fit."""

    model: Any
    settings: Any
    accelerator: Any
    device: torch.device
    sources: Any
    stopping: Any
    best: Any
    skipped: Any
    micro_batches: Any
    speedups: Any
    interrupt: Any
    progress: Any
    parallel: Any
    clock: Any
    monitor: str


def read_choices(run: Run) -> dict[str, Any]:
    """Return what a ``FitRun`` has decided so far: threads, memory layout, graph, micro-batches."""
    choices: dict[str, Any] = {"num_parts": run.micro_batches.num_parts}
    for name in _DECIDERS:
        decider = getattr(run.speedups, name)
        choices[name] = None if decider is None else decider.state_dict()
    return choices


def write_choices(run: Run, choices: dict[str, Any]) -> None:
    """Let a ``FitRun`` do as was decided; weights and optimizer state were loaded before."""
    run.micro_batches.num_parts = choices["num_parts"]
    for name in _DECIDERS:
        decider = getattr(run.speedups, name)
        if decider is not None and choices.get(name) is not None:
            decider.load_state_dict(choices[name])
