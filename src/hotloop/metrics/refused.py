"""What a metric does not take, and how to give it what it takes."""

from __future__ import annotations

from typing import Any

import torch

from hotloop.errors import MetricError
from hotloop.nested import describe


def refusal(name: str, metric: Any, preds: Any, labels: Any, error: Exception) -> MetricError:
    """Return the error that names a metric, what it was given, and how to mend that.

    Args:
        name: the metric's, "" for a collection as a whole.
        metric: that raised.
        preds: what it was given first.
        labels: what it was given second.
        error: what it raised.
    """
    kind = type(metric).__name__
    lines = str(error).strip().splitlines()
    said = lines[0].removesuffix(".") if lines else type(error).__name__
    return MetricError(
        f"metric '{name or kind}' ({kind}) cannot take {describe(preds, 'preds')} and "
        f"{describe(labels, 'labels')} ({said}): {_mend(metric, preds, labels)}."
    )


def _mend(metric: Any, preds: Any, labels: Any) -> str:
    """Say how a metric is given what it takes."""
    wrapped = "wrap the metric in a module whose forward picks what it takes"
    if not isinstance(preds, torch.Tensor):
        return f"return one tensor from the net, or {wrapped}"
    if not isinstance(labels, torch.Tensor):
        return f"give it labels that are one tensor, or {wrapped}"
    if preds.numel() == labels.numel() and preds.dim() == 2 and labels.dim() == 1:
        return "squeeze the net's output with .squeeze(1), or pass labels[:, None]"
    if preds.dim() >= 2 and labels.shape == (len(preds), 1, *preds.shape[2:]):
        return "pass labels.squeeze(1)"
    if preds.numel() == labels.numel() and preds.dim() == 1 and labels.dim() == 2:
        return "pass labels.squeeze(1), or leave the net's output (batch, 1)"
    num_classes = getattr(metric, "num_classes", None)
    if preds.dim() == labels.dim() + 1 and isinstance(num_classes, int):
        if preds.dim() > 2 and preds.shape[:-1] == labels.shape:
            return "the classes must be the predictions' second dimension, as preds.movedim(-1, 1)"
        if preds.shape[1] != num_classes:
            return (
                f"make it with num_classes={preds.shape[1]}, or give the net's last layer "
                f"{num_classes} outputs"
            )
    return (
        "give it predictions and labels of the shapes and dtypes it takes, or wrap it in a module "
        "whose forward converts them"
    )
