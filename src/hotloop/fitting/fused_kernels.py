"""The kernels behind torch's fused optimizers, with the arguments that ``step()`` gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

ADAM_KERNELS = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}


def adam_kernel(optimizer: Any, group: dict[str, Any]) -> Callable[..., None]:
    """Return the kernel of an Adam's group; a decoupled decay may be switched on in Adam too."""
    decoupled = group.get("decoupled_weight_decay")
    name = "_fused_adamw_" if decoupled else ADAM_KERNELS[type(optimizer)]
    kernel: Callable[..., None] = getattr(torch, name)
    return kernel


def update_adam(
    kernel: Callable[..., None],
    group: dict[str, Any],
    rate: Any,
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    averages: list[torch.Tensor],
    squares: list[torch.Tensor],
    largest: list[torch.Tensor],
    steps: list[torch.Tensor],
) -> None:
    """Call an Adam's kernel; the steps are counted already.

    Args:
        kernel: of the group.
        group: whose hyperparameters are read.
        rate: the learning rate, a number or a tensor on the device.
        params: with gradients.
        grads: theirs.
        averages: of gradients.
        squares: averages of their squares.
        largest: of these, with amsgrad; else empty.
        steps: counts, one for each parameter.
    """
    beta1, beta2 = group["betas"]
    kernel(
        params,
        grads,
        averages,
        squares,
        largest,
        steps,
        lr=rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=group["amsgrad"],
        maximize=group["maximize"],
    )


def update_sgd(
    group: dict[str, Any],
    rate: Any,
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    buffers: list[torch.Tensor],
) -> None:
    """Call SGD's kernel, after a first step; arguments as of ``update_adam``."""
    torch._fused_sgd_(
        params,
        grads,
        buffers if group["momentum"] else [],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=rate,
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        is_first_step=False,
    )
