"""Walk a batch of any nesting: tuples, lists, mappings, dataclasses, and objects with ``.to``.

A path names a leaf the way a user would write it: ``batch['image'][1]``.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Rebuild ``tree`` with ``function`` applied to each leaf; containers keep their types."""
    if isinstance(tree, torch.Tensor) or tree is None or isinstance(tree, (str, bytes)):
        return function(tree)
    if _is_movable(tree):
        return function(tree)
    if isinstance(tree, Mapping):
        return _rebuild_mapping(tree, {k: map_leaves(v, function) for k, v in tree.items()})
    if isinstance(tree, tuple):
        leaves = [map_leaves(v, function) for v in tree]
        return type(tree)(*leaves) if hasattr(tree, "_fields") else type(tree)(leaves)
    if isinstance(tree, list):
        return [map_leaves(v, function) for v in tree]
    if isinstance(tree, collections.deque):
        return collections.deque((map_leaves(v, function) for v in tree), tree.maxlen)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        rebuilt = copy.copy(tree)
        for field in dataclasses.fields(tree):
            # object.__setattr__: a frozen dataclass is rebuilt, never changed in the user's hands
            value = map_leaves(getattr(tree, field.name), function)
            object.__setattr__(rebuilt, field.name, value)
        return rebuilt
    return function(tree)


def iterate_leaves(tree: Any, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` for each leaf, depth first."""
    if isinstance(tree, torch.Tensor) or (_is_movable(tree) and not isinstance(tree, Mapping)):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from iterate_leaves(value, f"{path}[{key!r}]")
    elif isinstance(tree, (tuple, list, collections.deque)):
        for index, value in enumerate(tree):
            yield from iterate_leaves(value, f"{path}[{index}]")
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from iterate_leaves(getattr(tree, field.name), f"{path}.{field.name}")
    else:
        yield path, tree


def iterate_modules(tree: Any) -> Iterator[nn.Module]:
    """Yield the modules in a tree, not those inside of them."""
    for _, leaf in iterate_leaves(tree):
        if isinstance(leaf, nn.Module):
            yield leaf


def iterate_tensors(tree: Any, path: str = "batch") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``(path, tensor)`` for the leaves that are tensors."""
    for leaf_path, leaf in iterate_leaves(tree, path):
        if isinstance(leaf, torch.Tensor):
            yield leaf_path, leaf


def to_device(tree: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Move every tensor of ``tree`` to ``device``; numeric numpy arrays become tensors there.

    Args:
        tree: tensors nested in tuples, named tuples, lists, mappings, dataclasses or objects with
            a ``.to(device)`` method (packed sequences, Hugging Face encodings, graph batches).
            Strings, numbers and other leaves pass unchanged.
        device: where to.
        non_blocking: let copies from pinned memory run behind the host; where ``copies_behind``.

    Returns:
        The same structure on ``device``. Containers are rebuilt, never changed in place; a tensor
        that is there already is returned as it is.
    """
    non_blocking = non_blocking and copies_behind(device)

    def move(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.to(device, non_blocking=non_blocking)
        if isinstance(leaf, (torch.nn.Module, torch.nn.utils.rnn.PackedSequence)):
            return leaf.to(torch.device(device), non_blocking=non_blocking)  # type: ignore[arg-type]
        if _is_movable(leaf):
            return leaf.to(device)
        if _is_numeric_array(leaf):
            return torch.as_tensor(leaf, device=device)
        return leaf

    return map_leaves(tree, move)


def copies_behind(device: torch.device | str) -> bool:
    """Tell whether a copy to a device may run behind the host.

    Not to MPS: there torch lets go of the host's tensor before it is read, and other values arrive
    (https://github.com/pytorch/pytorch/issues/139550, /189690; open in torch 2.13).
    """
    return not str(device).startswith("mps")


def clone_tensors(tree: Any) -> Any:
    """Return a tree with copies of its tensors, in the same layout of memory."""
    return map_leaves(tree, lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf)


def count_samples(batch: Any) -> int:
    """Return the number of samples of a batch: the first dimension of its last tensor.

    The last, for in ``(inputs, labels)`` the labels always have one entry a sample. Where they are
    a list with one entry a sample, as in object detection, the list is counted; of a graph batch
    with ``num_graphs``, the graphs. A batch without any tensor of one dimension or more counts as
    one sample.
    """
    if isinstance(batch, (tuple, list)) and batch:
        last = batch[-1]
        if isinstance(last, torch.Tensor) and last.dim():
            return int(last.shape[0])
    listed = listed_samples(batch)
    if listed is not None:
        return listed
    num_samples = 1
    for _, leaf in iterate_leaves(batch):
        if isinstance(leaf, torch.Tensor):
            num_samples = int(leaf.shape[0]) if leaf.dim() else num_samples
        elif isinstance(num_graphs := getattr(leaf, "num_graphs", None), int):
            num_samples = num_graphs
    return num_samples


def listed_samples(batch: Any) -> int | None:
    """Return the number of samples of a batch that lists them one by one; None for other batches.

    A list of dicts of tensors is one: a loader that stacks samples makes a dict of lists. A list
    of tensors is one where their lengths show that they were not stacked. Either way another part
    of the batch has as many entries.
    """
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, (tuple, list)):
        parts = list(batch)
    else:
        return None
    for part in reversed(parts):
        if isinstance(part, (tuple, list)) and part:
            others = [other for other in parts if other is not part]
            if _lists_samples(part, others):
                return len(part)
    return None


def _lists_samples(part: Sequence[Any], others: Sequence[Any]) -> bool:
    num = len(part)
    stacked = any(_has_rows(other) and len(other) == num for other in others)
    listed = any(isinstance(other, (tuple, list)) and len(other) == num for other in others)
    if all(isinstance(entry, Mapping) for entry in part):
        return stacked or listed
    if not all(_has_rows(entry) for entry in part):
        return False
    lengths = {len(entry) for entry in part}
    return (stacked and lengths != {num}) or (listed and len(lengths) > 1)


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def describe(tree: Any, path: str = "batch") -> str:
    """Say dtype and shape of each tensor: ``batch[0] float32 (128, 1, 28, 28), ...``."""
    parts = []
    for leaf_path, leaf in iterate_leaves(tree, path):
        if isinstance(leaf, torch.Tensor):
            parts.append(f"{leaf_path} {describe_tensor(leaf)}")
        else:
            parts.append(f"{leaf_path} {type(leaf).__name__}")
    return ", ".join(parts) if parts else f"{path} {type(tree).__name__} without values"


def describe_tensor(tensor: torch.Tensor) -> str:
    """Say dtype and shape of a tensor: ``float32 (128, 10)``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _is_movable(value: Any) -> bool:
    return hasattr(value, "to") and callable(value.to) and not isinstance(value, (type, str))


def _is_numeric_array(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return type(value).__module__ == "numpy" and getattr(dtype, "kind", "") in "biuf"


def _rebuild_mapping(tree: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(tree) is dict:
        return values
    try:
        rebuilt = copy.copy(tree)  # keeps a defaultdict's factory, an OrderedDict's type
        for key, value in values.items():
            rebuilt[key] = value  # type: ignore[index]
    except TypeError:  # an immutable mapping: made anew, or a dict where it takes no mapping
        try:
            return type(tree)(values)  # type: ignore[call-arg]
        except TypeError:
            return values
    return rebuilt
