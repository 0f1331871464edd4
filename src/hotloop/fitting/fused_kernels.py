"""The kernels behind torch's fused optimizers, with the arguments that ``step()`` gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hotloop.fitting.optimizers import is_dense

# torch/aten/src/ATen/native/cuda/MultiTensorApply.cuh (torch 2.13): one block of threads works off
# so many elements of a tensor, and one launch takes so many tensors, by the number of lists; more
# where torch was built for CUDA 13. A wrong number costs a launch and changes nothing else.
_BLOCK = 65_536
_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
_PER_LAUNCH_SINCE_CUDA_13 = {1: 770, 2: 448, 3: 336, 4: 252, 5: 210}
_PIECE = 2_048  # pieces are a multiple of it, as aligned as their tensor

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


def in_pieces(
    lists: Sequence[list[torch.Tensor]], counts: list[torch.Tensor] | None = None
) -> list[list[torch.Tensor]]:
    """Part large tensors, so that a fused kernel gives them to more of a GPU's processors.

    As many pieces as need no further launch. The image job's update, 53,000 weights of which 51,000
    lie in one tensor, takes 5 us in place of 28 on an H100; each element's arithmetic is the same.

    Args:
        lists: parameters first, then what goes with each in the same order and memory layout: its
            gradient, averages. Empty lists stay empty.
        counts: of steps, of 0 dimensions, one for each parameter; it goes with every piece.

    Returns:
        The same lists, of pieces, and that of the counts if there is one.
    """
    params = lists[0]
    held = [each for each in lists if each]
    dense = [
        is_dense(param) and all(_lies_like(param, each[index]) for each in held)
        for index, param in enumerate(params)
    ]
    sizes = [p.numel() if ok else 0 for p, ok in zip(params, dense, strict=True)]
    size = _piece_size(sizes, _tensors_a_launch(len(held)))
    num_pieces = [1 if size is None else max(1, math.ceil(count / size)) for count in sizes]
    pieces = [
        [
            piece
            for tensor, num in zip(each, num_pieces, strict=True)
            for piece in (_part(tensor, size) if num > 1 and size else [tensor])
        ]
        if each
        else []
        for each in lists
    ]
    if counts is not None:
        pairs = zip(counts, num_pieces, strict=True)
        pieces.append([count for count, num in pairs for _ in range(num)])
    return pieces


def _lies_like(param: torch.Tensor, other: torch.Tensor) -> bool:
    return other.shape == param.shape and other.stride() == param.stride()


def _tensors_a_launch(num_lists: int) -> int:
    version = torch.version.cuda
    since_13 = version is not None and int(version.split(".")[0]) >= 13
    limits = _PER_LAUNCH_SINCE_CUDA_13 if since_13 else _PER_LAUNCH
    return limits.get(num_lists, min(limits.values()))


def _piece_size(counts: Sequence[int], per_launch: int) -> int | None:
    """Return the smallest size of a piece, in elements, that needs no more launches; or None."""
    allowed = math.ceil(len(counts) / per_launch) * per_launch
    for size in range(_PIECE, _BLOCK, _PIECE):
        if sum(max(1, math.ceil(count / size)) for count in counts) <= allowed:
            return size
    return None


def _part(tensor: torch.Tensor, size: int) -> list[torch.Tensor]:
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return list(flat.split(size))  # type: ignore[no-untyped-call]
