"""Class indices and indices of embeddings, looked at before a kernel reads past an end.

On an accelerator an index out of range is an assertion inside a kernel, which ends the process's
use of the device without a word on the cause ("device-side assert triggered").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hotloop.data.occurring import INDEX_DTYPES, OccurringValues, limits_of
from hotloop.errors import IndexRangeError, LabelError
from hotloop.nested import describe_tensor, iterate_leaves, iterate_tensors

_LISTED_ROWS = 16  # of a batch, that an error names
_MOST_VAIN_LOOKS = 8  # at what looked suspicious, batches or whole data, after which none is taken

Column = tuple[int, int]  # a dimension, and the index in it


class LabelRange:
    """Checks class indices before the loss sees them, for the losses that take some.

    On a CPU the loss itself refuses them without harm, and is explained then.
    """

    def __init__(self, loss_fn: Any) -> None:
        self.applies = isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss))
        self.ignore_index = getattr(loss_fn, "ignore_index", -100)
        self._labels: torch.Tensor | None = None  # on the host
        self._are_a_batchs = False

    def offer(self, labels: Any) -> None:
        """Remember the labels of a batch as they lay on the host, before they were moved."""
        self._labels, self._are_a_batchs = None, isinstance(labels, torch.Tensor)
        if self.applies:
            if isinstance(labels, OccurringValues):
                labels = labels.distinct()
            if isinstance(labels, torch.Tensor) and labels.device.type == "cpu":
                self._labels = None if labels.is_floating_point() else labels

    def check(self, preds: Any) -> None:
        """Refuse labels out of range, where ``offer`` found them on the host.

        Args:
            preds: the net's predictions, or a tensor like them; None: not known.

        Raises:
            LabelError: names the smallest and largest label and the number of classes.
        """
        if self._labels is not None:
            self.refuse(preds, self._labels, self._are_a_batchs)

    def refuse(self, preds: Any, labels: torch.Tensor, are_a_batchs: bool = True) -> None:
        """Raise when a label is out of range for ``preds``.

        Args:
            preds: (batch, classes, ...) or (classes,).
            labels: class indices.
            are_a_batchs: (batch, ...), one entry a sample; else of more samples than those.
        """
        if not isinstance(preds, torch.Tensor) or preds.dim() < 1:
            return
        num_classes = preds.shape[1] if preds.dim() > 1 else preds.shape[0]
        used = labels != self.ignore_index
        found = labels[used]
        if not found.numel():
            return
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= num_classes:
            mend = f"give the net's last layer {high + 1} outputs"
            if num_classes == 1 and high == 1:
                mend += ", or take BCEWithLogitsLoss and labels[:, None].float()"
            if high < num_classes:
                mend = f"pass ignore_index={low} to the loss where they mean nothing"
            classes = "class" if num_classes == 1 else "classes"
            error = LabelError(
                f"the labels go from {low} to {high}, but the net gives {num_classes} {classes} "
                f"({describe_tensor(preds)}): labels must lie in 0..{num_classes - 1}; renumber "
                f"them or {mend}."
            )
            if are_a_batchs:
                error.rows = _rows_of(used & ((labels < 0) | (labels >= num_classes)))
            raise error


class EmbeddingRange:
    """Checks the indices that embeddings are given, on an accelerator.

    The net's first pass reads them from the device, before each embedding, and notes which
    tensors of the batch (or columns of them) embeddings are given as they are. Of further batches
    these are looked at on the host; of resident data once. Where one is out of range, a pass
    reads from the device again: only an embedding that is really given such an index refuses it.
    So does a pass on a batch that is larger in some dimension than all before, for positions.

    Attributes:
        net: whose embeddings they are.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._names = {
            module: name for name, module in net.named_modules() if is_plain_embedding(module)
        }
        self._uses: dict[tuple[str, Column | None], int] = {}  # the number of rows, by the tensor
        self._largest: dict[str, list[int]] = {}
        self._offered: dict[str, Any] = {}
        self._verdict: bool | None = None  # on what was offered
        self._was_watched = False  # a pass on what was offered, for its indices, which went well
        self._num_vain = 0

    @property
    def applies(self) -> bool:
        """Whether the net has embeddings that are given indices."""
        return bool(self._names)

    def offer(self, inputs: Any) -> None:
        """Look at a batch's inputs as they lay on the host.

        Args:
            inputs: positional and keyword inputs of the net, tensors or ``OccurringValues``.
        """
        self._num_vain += self._was_watched
        self._was_watched = False
        self._offered, self._verdict = dict(_iterate_indices(inputs)), None

    @property
    def is_suspicious(self) -> bool:
        """Whether a pass on the offered batch must be looked at."""
        if self._verdict is None:
            few = self._num_vain < _MOST_VAIN_LOOKS
            found = (
                (_limits(self._offered[path], column), num_rows)
                for (path, column), num_rows in self._uses.items()
                if path in self._offered
            )
            self._verdict = few and any(
                limits is not None and _is_outside(limits, num_rows) for limits, num_rows in found
            )
        return self._verdict

    @contextlib.contextmanager
    def watching(self, inputs: Any) -> Iterator[None]:
        """Look at each embedding's indices inside the block, if that is due.

        Args:
            inputs: positional and keyword inputs of the net, on the device.

        Raises:
            IndexRangeError: an embedding is given an index out of range.
        """
        if not (self._is_larger(inputs) or self.is_suspicious):
            yield
            return
        leaves = list(iterate_tensors(inputs))

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():  # else it would stay in what a user compiled
                return
            indices = args[0] if args else kwargs.get("input")
            refuse_indices(self._names[module], module, indices)
            for path, leaf in leaves:
                part = _part_of(leaf, indices)
                if part is not None:
                    num_rows: Any = module.num_embeddings
                    known = self._uses.get((path, *part), num_rows)
                    self._uses[path, *part] = min(known, num_rows)

        handles = [
            module.register_forward_pre_hook(look, prepend=True, with_kwargs=True)
            for module in self._names
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._was_watched |= self.is_suspicious
        self._verdict = None  # more uses may be known now

    def _is_larger(self, inputs: Any) -> bool:
        """Tell whether some dimension of a tensor is larger than in all passes before."""
        found = False
        for path, leaf in iterate_tensors(inputs):
            largest = self._largest.get(path)
            if largest is None or len(largest) != leaf.dim():
                self._largest[path], found = list(leaf.shape), True
            elif any(size > known for size, known in zip(leaf.shape, largest, strict=True)):
                self._largest[path] = list(map(max, leaf.shape, largest))
                found = True
        return found


def is_plain_embedding(module: nn.Module) -> bool:
    """Tell whether a module looks up the indices it is given, and not some of its own."""
    forward = getattr(type(module), "forward", None)
    plain = (nn.Embedding.forward, nn.EmbeddingBag.forward)
    return forward in plain and "forward" not in vars(module)


def refuse_indices(name: str, module: nn.Module, indices: Any) -> None:
    """Raise when an embedding is given an index out of range.

    Args:
        name: the embedding's, in its net.
        module: ``nn.Embedding`` or ``nn.EmbeddingBag``.
        indices: what it is given; of any device, which is waited for.

    Raises:
        IndexRangeError: names the smallest and largest index and the number of rows.
    """
    num_rows: Any = module.num_embeddings
    limits = limits_of(indices) if _are_indices(indices) else None
    if limits is not None and _is_outside(limits, num_rows):
        low, high = limits
        mend = f", or give it {high + 1} rows" if high >= num_rows else ""
        error = IndexRangeError(
            f"layer '{name}' ({module}) was given indices from {low} to {high} "
            f"({describe_tensor(indices)}), but has {num_rows} rows: indices must lie in "
            f"0..{num_rows - 1}; renumber them or cut what is longer{mend}."
        )
        if isinstance(module, nn.Embedding) and indices.dim():
            error.rows = _rows_of((indices < 0) | (indices >= num_rows))
            error.num_rows = len(indices)
        raise error


def _rows_of(bad: torch.Tensor) -> list[int] | None:
    """Return the first positions in a batch at which something is true."""
    if not bad.dim():
        return None
    rows: list[int] = bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()
    return rows[:_LISTED_ROWS]


def _are_indices(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in INDEX_DTYPES


def _iterate_indices(inputs: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in iterate_leaves(inputs):
        on_host = _are_indices(leaf) and leaf.device.type == "cpu"
        if on_host or isinstance(leaf, OccurringValues):
            yield path, leaf


def _limits(leaf: Any, column: Column | None) -> tuple[int, int] | None:
    if isinstance(leaf, OccurringValues):
        return leaf.limits(column)
    return limits_of(leaf if column is None else leaf.select(*column))


def _is_outside(limits: tuple[int, int], num_rows: int) -> bool:
    return limits[0] < 0 or limits[1] >= num_rows


def _part_of(leaf: torch.Tensor, indices: Any) -> tuple[Column | None] | None:
    """Tell which part of a batch's tensor some indices are; None for no part of it.

    Returns:
        ``(None,)`` for all of it, ``((dimension, index),)`` for what ``select`` gives.
    """
    if not isinstance(indices, torch.Tensor) or leaf.dtype != indices.dtype:
        return None
    if leaf.layout != torch.strided or indices.layout != torch.strided:
        return None
    offset = indices.data_ptr() - leaf.data_ptr()
    if not offset and leaf.shape == indices.shape and leaf.stride() == indices.stride():
        return (None,)
    for dim in range(1, leaf.dim()):
        stride = leaf.stride(dim) * leaf.element_size()
        rest = [*leaf.shape[:dim], *leaf.shape[dim + 1 :]]
        steps = (*leaf.stride()[:dim], *leaf.stride()[dim + 1 :])
        if list(indices.shape) != rest or indices.stride() != steps or not stride:
            continue
        index, remainder = divmod(offset, stride)
        if not remainder and 0 <= index < leaf.shape[dim]:
            return ((dim, index),)
    return None
