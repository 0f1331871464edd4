"""Which gradients are nothing but rounding, and so differ freely between two forms of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hotloop.fitting.graph.pure_step import PureGradients, PureStep
from hotloop.fitting.graph.updates import AdamUpdate

_NUM_TRIES = 4
_NUM_ERRORS = 256  # so many roundings: one alone leaves many partial sums as they were
_SHARE = 0.05  # of a gradient: by so much rounding errors of the weights change none that counts


def find_rounding(
    step: PureStep,
    before: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    autocast_dtype: torch.dtype | None,
) -> dict[int, torch.Tensor]:
    """Find elements whose gradients say nothing, where Adam makes whole steps of them.

    Args:
        step: whose numbers (learning rate and so on) are those of this step.
        before: parameters and buffers, then the optimizer's tensors, as they were before it.
        leaves: the batch's tensors.
        autocast_dtype: of forward and loss; None for the weights' own.

    Returns:
        bool, by place in ``before``: for each parameter and the average of its gradients, which
        elements are rounding.
    """
    places = _places_of_averages(step)

    def gradients_of(state: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return _gradients(step, state, leaves, places)

    params = [param for param, _, _ in places]
    masks = _find_unsteady(gradients_of, before, params, autocast_dtype) if places else []
    found = {}
    for (param, average, _), mask in zip(places, masks, strict=True):
        found[param] = found[average] = mask
    return found


def find_rounding_of_gradients(
    compute: PureGradients,
    before: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    autocast_dtype: torch.dtype | None,
    scale: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Find elements of gradients that say nothing.

    Args:
        compute: gives the gradients.
        before: parameters and buffers, as they were before.
        leaves: the batch's tensors.
        autocast_dtype: of forward and loss; None for the weights' own.
        scale: of the loss, without which gradients in float16 are nothing; None for none.

    Returns:
        bool, for each gradient that there is: which elements are rounding.
    """

    def gradients_of(state: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        values = [tensor.clone() for tensor in state]
        devices = [leaf.device for leaf in leaves[:1] if leaf.device.type == "cuda"]
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            return compute(values, leaves, scale)[2]

    params = [compute.all_names.index(name) for name in compute.trained]
    return _find_unsteady(gradients_of, before, params, autocast_dtype)


def _find_unsteady(
    gradients_of: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    before: Sequence[torch.Tensor],
    params: Sequence[int],
    autocast_dtype: torch.dtype | None,
) -> list[torch.Tensor]:
    """Find elements of gradients that a few rounding errors change by a twentieth of themselves.

    The bias of a convolution before batch normalisation is one: its gradient is a sum that cancels.
    The gradients are computed again, eagerly and on copies, with each weight moved by some rounding
    errors.

    Args:
        gradients_of: computes them for a state.
        before: that state.
        params: places of the weights in it.
        autocast_dtype: of forward and loss; None for the weights' own.
    """
    generator = torch.Generator().manual_seed(0)
    plain = gradients_of(before)
    spread = [torch.zeros_like(gradient) for gradient in plain]
    for _ in range(_NUM_TRIES):
        moved = list(before)
        for param in params:
            value = before[param]
            signs = torch.randint(0, 2, value.shape, generator=generator).to(value.device) * 2 - 1
            moved[param] = value * (1 + _step_of(value, autocast_dtype) * signs)
        other = gradients_of(moved)
        spread = [
            torch.maximum(most, (gradient - first).abs())
            for most, gradient, first in zip(spread, other, plain, strict=True)
        ]
    return [
        ((most >= _SHARE * first.abs()) & (most > 0)).cpu()
        for most, first in zip(spread, plain, strict=True)
    ]


def _step_of(param: torch.Tensor, autocast_dtype: torch.dtype | None) -> float:
    """Return by which share of themselves weights are moved."""
    if autocast_dtype is not None:
        return torch.finfo(autocast_dtype).eps
    return _NUM_ERRORS * torch.finfo(param.dtype).eps


def _places_of_averages(step: PureStep) -> list[tuple[int, int, float]]:
    """Return the places of Adam's parameters and of the averages of their gradients.

    Beside them stands the share of a new gradient in its average, 1 - beta1.
    """
    place, found = len(step.all_names), []
    for update, names in zip(step.updates, step.trained, strict=True):
        for name in names:
            if isinstance(update, AdamUpdate):
                found.append((step.all_names.index(name), place, float(update.numbers[3])))
            place += len(update.names)
    return found


def _gradients(
    step: PureStep,
    state: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    places: Sequence[tuple[int, int, float]],
) -> list[torch.Tensor]:
    """Compute Adam's gradients of a step from a state, with the random numbers that come next."""
    values = [tensor.clone() for tensor in state]
    rest = iter(values[len(step.all_names) :])
    states = [
        [tuple(next(rest) for _ in update.names) for _ in names]
        for update, names in zip(step.updates, step.trained, strict=True)
    ]
    numbers = [update.numbers for update in step.updates]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        step(values[: len(step.all_names)], states, numbers, leaves)
    return [
        (values[average] - state[average]) / share + state[average] for _, average, share in places
    ]
