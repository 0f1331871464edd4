"""Samples of which torch makes no batch: which one it is, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from hotloop.nested import iterate_leaves

NO_BATCH = "default_collate: batch must contain"


def explain_samples(samples: Sequence[tuple[Any, Any]], role: str) -> str | None:
    """Say which sample torch's ``default_collate`` cannot put into a batch, and why.

    Args:
        samples: and the index of each, of a batch that was refused; one at least.
        role: the data's name, as the argument is called.

    Returns:
        A sentence, or None where all samples hold what they may, in the same places.
    """
    for sample, index in samples:
        for path, leaf in iterate_leaves(sample, ""):
            if leaf is None and not path:
                return (
                    f"sample {index} of {role} is None: return (inputs, labels) from __getitem__, "
                    f"or leave such samples out of the data set."
                )
            if not _can_be_collated(leaf):
                where = f"part {path} of sample {index}" if path else f"sample {index}"
                return f"{where} of {role} is {_name(leaf)}, {_mend(leaf)}."
    first = _places_of(samples[0][0])
    for sample, index in samples:
        if _places_of(sample) != first:
            return (
                f"sample {index} of {role} has the parts {_list(_places_of(sample))}, and sample "
                f"{samples[0][1]} has {_list(first)}: give all samples the same parts, or pass a "
                f"collate_fn to the DataLoader."
            )
    return None


def _can_be_collated(leaf: Any) -> bool:
    kind = getattr(getattr(leaf, "dtype", None), "kind", None)
    if kind is not None:  # numpy's
        return kind in tuple("biufc")
    known = (torch.Tensor, int, float, complex, str, bytes, *default_collate_fn_map)
    return isinstance(leaf, known)


def _name(leaf: Any) -> str:
    if leaf is None:
        return "None"
    kind = getattr(leaf, "dtype", None)
    name = type(leaf).__name__
    return f"of type {name}" if kind is None else f"of type {name} ({kind})"


def _mend(leaf: Any) -> str:
    if leaf is None:
        return (
            "of which torch makes no batch: give a number or tensor in its place, leave such "
            "samples out, or pass a collate_fn to the DataLoader"
        )
    if type(leaf).__module__.startswith("PIL."):
        return (
            "of which torch makes no batch: make a tensor of it with the data set's transform, as "
            "transform=torchvision.transforms.ToTensor()"
        )
    return (
        "of which torch makes no batch: make a tensor or number of it in __getitem__, or pass a "
        "collate_fn to the DataLoader"
    )


def _places_of(sample: Any) -> list[str]:
    return [path for path, _ in iterate_leaves(sample, "")]


def _list(places: list[str]) -> str:
    if not any(places):
        return "of a single value"
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return ", ".join(places[:4]) + more
