"""The callbacks that arguments of ``fit`` ask for."""

from __future__ import annotations

from typing import Any


def built_in_callbacks(plot: bool, wandb: bool | str) -> list[Any]:
    """Return them, each imported when it is asked for.

    Args:
        plot: draw the monitored metric.
        wandb: log to Weights & Biases; a string names the project.
    """
    callbacks: list[Any] = []
    if plot:
        from hotloop.callbacks.environment import in_notebook
        from hotloop.callbacks.vis_metric import VisMetric

        if not in_notebook():  # a notebook's display draws the plot itself
            callbacks.append(VisMetric())
    if wandb:
        from hotloop.callbacks.wandb import WandbCallback

        callbacks.append(WandbCallback(project=wandb if isinstance(wandb, str) else "hotloop"))
    return callbacks
