"""What a run is made of, noted in its checkpoints, so that it goes on with nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hotloop.data.position import digest_of
from hotloop.data.purity import is_known_pure
from hotloop.errors import CheckpointError
from hotloop.fitting.resume.parts import Trained, extras_of

_NUM_COMPARED = 16  # samples of tensors, which cost nothing to read


def identity_of(model: Trained) -> dict[str, Any]:
    """Return the classes of a model's objects, and which parameters its optimizers update."""
    names = {id(parameter): name for name, parameter in model.net.named_parameters()}
    loss = model.loss_fn
    return {
        "optimizer": _describe(model.optimizer, names),
        "scheduler": _describe(model.lr_scheduler, names),
        "loss": _describe(loss, names) if isinstance(loss, nn.Module) else None,
        **{
            name: _describe(value, names)
            for name, value in model.kwargs.items()
            if hasattr(value, "state_dict") and not isinstance(value, type)
        },
        **{name: _describe(part, names) for name, part in extras_of(model).items()},
    }


def check_identity(model: Trained, saved: dict[str, Any], knows_all: bool = True) -> None:
    """Refuse a checkpoint of other objects.

    Args:
        model: what is there.
        saved: of ``identity_of``, when the checkpoint was made.
        knows_all: whether that was of all extras; earlier versions knew the arguments alone.

    Raises:
        CheckpointError: a class or an optimizer's parameters differ; names what.
    """
    own = identity_of(model)
    new = [name for name in own if name not in saved]
    if not knows_all:
        new = [name for name in new if hasattr(model.kwargs.get(name), "state_dict")]
    for what in [*saved, *new]:
        before, now = saved.get(what), own.get(what)
        if before == now:
            continue
        classes = [(entry or {"class": "none"})["class"] for entry in (before, now)]
        difference = f"{classes[0]} there and {classes[1]} here"
        if classes[0] == classes[1]:
            difference = f"{classes[0]} of other parameters, or of the same in another order"
        raise CheckpointError(
            f"the run's checkpoint is of another {what} ({difference}): build it as it was, or "
            f"pass another ckpt_path."
        )


def describe_data(batches: Any, num_batches: int | None) -> dict[str, Any]:
    """Return what tells data from other data without reading what may not be read twice.

    Args:
        batches: the loader or iterable.
        num_batches: an epoch; None when unknown.

    Returns:
        Numbers of batches and samples, the batch size, and of tensors a digest of a few samples;
        None for what is not known.
    """
    dataset = getattr(batches, "dataset", None)
    samples = dataset if is_known_pure(dataset) else None
    if type(batches) in (list, tuple):
        samples = batches
    try:
        num_samples = None if dataset is None else len(dataset)
    except (TypeError, NotImplementedError):  # a stream
        num_samples = None
    digest = None
    if samples is not None and len(samples):
        step = -(-len(samples) // _NUM_COMPARED)
        digest = digest_of([samples[index] for index in range(0, len(samples), step)])
    return {
        "batches": num_batches,
        "samples": num_samples,
        "samples a batch": getattr(getattr(batches, "batch_sampler", None), "batch_size", None),
        "digest": digest,
    }


def check_data(own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse a checkpoint of other data.

    Args:
        own: of ``describe_data`` by role; None for a role without data.
        saved: the same, of the checkpoint.

    Raises:
        CheckpointError: they differ; says in what.
    """
    for role, before in saved.items():
        now = own.get(role)
        if before is None or now is None:
            continue
        for what, number in before.items():
            if now[what] == number:
                continue
            difference = f"{number} {what} there and {now[what]} here"
            if what == "digest":
                difference = "as many samples, with other values"
            raise CheckpointError(
                f"the run's checkpoint is of another {role} ({difference}): pass the same data "
                f"and batch size, or another ckpt_path."
            )


def read_callbacks(callbacks: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the states of the callbacks that have one, with their classes."""
    return [
        {"class": type(callback).__qualname__, "state": callback.state_dict()}
        for callback in callbacks
        if hasattr(callback, "state_dict")
    ]


def write_callbacks(callbacks: Sequence[Any], saved: list[dict[str, Any]]) -> None:
    """Give states to the callbacks of the same class, in their order within it."""
    num_given: Counter[str] = Counter()
    for callback in callbacks:
        if not hasattr(callback, "load_state_dict"):
            continue
        name = type(callback).__qualname__
        states = [entry["state"] for entry in saved if entry["class"] == name]
        if num_given[name] < len(states):
            callback.load_state_dict(states[num_given[name]])
        num_given[name] += 1


def _describe(value: Any, names: dict[int, str]) -> dict[str, Any] | None:
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return {"class": "tensor"}  # a parameter that was moved to a device is none any more
    described: dict[str, Any] = {"class": type(value).__qualname__}
    if isinstance(value, torch.optim.Optimizer):
        described["parameters"] = [
            # those of a loss, say, have no name in the net
            [names.get(id(p), str(tuple(p.shape))) for p in group["params"]]
            for group in value.param_groups
        ]
    return described
