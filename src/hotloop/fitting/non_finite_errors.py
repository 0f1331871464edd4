"""Says where a NaN or infinite loss came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hotloop.errors import NonFiniteError
from hotloop.fitting.non_finite import first_bad_trained
from hotloop.nested import count_samples, describe_tensor, iterate_tensors


def bad_loss(loss: float, net: nn.Module, batch: Any, step: int, epoch: int) -> NonFiniteError:
    """Return the error for a bad loss, seen before the step's update.

    Weights that are bad by now became so in the update before, whose step is the one to name.

    Args:
        loss: its value.
        net: the net; its weights are looked at.
        batch: the batch of that step.
        step: counted from 1.
        epoch: counted from 1.
    """
    looks = step > 1 and _is_finite(batch)
    name = first_bad_trained(net.named_parameters()) if looks else None
    if name is None:
        text = explain_non_finite(loss, net, batch, step, epoch)
        return NonFiniteError(text, step=step, epoch=epoch)
    return NonFiniteError(
        f"the gradients of step {step - 1} of epoch {epoch} were NaN or infinite though its "
        f"loss was not: its update spoiled the parameter '{name}', and the loss of step {step} "
        f"became {loss}; lower the learning rate, or leave such steps out with "
        f"on_non_finite='skip'",
        step=step - 1,
        epoch=epoch,
    )


def explain_non_finite(loss: float, net: nn.Module, batch: Any, step: int, epoch: int) -> str:
    """Say where a NaN or infinite loss came from, as far as the batch and the net show it.

    Args:
        loss: its value.
        net: the net; its weights are looked at.
        batch: the batch of that step; None when it is gone.
        step: counted from 1.
        epoch: counted from 1.
    """
    head = f"the loss became {loss} at step {step} of epoch {epoch}"
    if batch is not None and not count_samples(batch):
        return (
            f"{head} because its batch has no samples, of which there is no mean: leave such "
            f"batches out, in the collate_fn or the stream that made it."
        )
    for path, tensor in iterate_tensors(batch):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            rows = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
            bad = int((~torch.isfinite(rows)).any(dim=1).sum())
            return (
                f"{head} because {path} ({describe_tensor(tensor)}) holds NaN or infinite values "
                f"in {bad} of its samples: clean the data or drop those samples."
            )
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            return (
                f"{head}, and the parameter '{name}' holds NaN or infinite values: lower the "
                f"learning rate or pass clip_grad_norm=1.0."
            )
    known = (
        "the batch and the weights are finite" if batch is not None else "the weights are finite"
    )
    return (
        f"{head} though {known}: a finite loss was expected; look for a logarithm or division of "
        f"zero in the net or the loss, or lower the learning rate."
    )


def _is_finite(batch: Any) -> bool:
    """Tell whether no number in a batch is NaN or infinite."""
    return all(
        bool(torch.isfinite(tensor).all())
        for _, tensor in iterate_tensors(batch)
        if tensor.is_floating_point()
    )
