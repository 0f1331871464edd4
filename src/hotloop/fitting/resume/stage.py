"""What a training stage has added up by the middle of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hotloop.fitting.resume.metrics import read_metrics, write_metrics

_RUNNER_COUNTS = ("num_steps", "_group_samples", "_first_samples")
_ACCELERATOR_COUNTS = ("_num_accumulated", "sync_gradients")


def read_stage(stage: Any) -> dict[str, Any]:
    """Return losses, metrics and counts of an epoch runner, as they are now.

    A step runner of the user's own with ``state_dict`` and ``load_state_dict`` is asked for its.
    """
    runner, accelerator = stage.step_runner, stage.accelerator
    stage.flush()
    state: dict[str, Any] = {
        "logs": {
            name: {
                "values": np.array(log.values(), dtype=np.float64),
                "num_samples": np.array(log.num_samples, dtype=np.int64),
            }
            for name, log in stage.logs.items()
        },
        "metrics": read_metrics(stage.metrics),
        "runner": {name: getattr(runner, name) for name in _RUNNER_COUNTS if hasattr(runner, name)},
        "accelerator": {name: getattr(accelerator, name) for name in _ACCELERATOR_COUNTS},
    }
    if hasattr(runner, "state_dict") and hasattr(runner, "load_state_dict"):
        state["own"] = runner.state_dict()
    return state


def write_stage(stage: Any, state: dict[str, Any], device: torch.device) -> None:
    """Put an epoch runner back to where it was."""
    for name, saved in state["logs"].items():
        stage.log(name).load(saved["values"].tolist(), saved["num_samples"].tolist())
    write_metrics(stage.metrics, state["metrics"], device)
    for name, value in state["runner"].items():
        setattr(stage.step_runner, name, value)
    for name, value in state["accelerator"].items():
        setattr(stage.accelerator, name, value)
    if "own" in state and hasattr(stage.step_runner, "load_state_dict"):
        stage.step_runner.load_state_dict(state["own"])
