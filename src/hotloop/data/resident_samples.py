"""All samples of a data set in memory, proven to be those that reading them gives."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from hotloop.data.column import Column
from hotloop.data.declined import Declined, declining_without_memory, refuse_over_budget
from hotloop.data.encoding import choose_encodings, same_bits
from hotloop.data.purity import (
    DatasetAttributes,
    WatchedDataset,
    is_known_pure,
    read_samples,
    watched_collate,
)
from hotloop.data.random_state import RandomStates
from hotloop.data.tensor_datasets import Holdings, flatten
from hotloop.nested import iterate_leaves, map_leaves

_FIRST_BATCH = 32  # samples that tell how fast, how large and how pure reading is
_READ_BATCH = 256
_NUM_REREAD = 64  # samples compared before the take-over
_NUM_RECHECK = 4  # samples compared again each epoch
SLOW_SECONDS = 3.0  # longer reading goes through the loader's workers

# shows how far the reading of a data set is, by its role, while its batches are taken; the last
# argument is how many samples a batch has
ShowReading = Callable[[str, DataLoader[Any], int], Iterator[Any]]


class ResidentSamples(ABC):
    """The samples of a data set, a column for each leaf of a batch.

    Attributes:
        columns: on the training device, or on the host after ``to_host``.
        row_of: rows of a ``Subset``'s samples, int64 ``(n,)``; None where they are all rows.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device, budget: int) -> None:
        self.columns: list[Column] = []
        self.row_of: torch.Tensor | None = None
        self._loader, self._device, self._budget = loader, device, budget
        self._template: Any = None
        self._is_flat = False  # a batch is a list of its columns

    @abstractmethod
    def renew(self) -> bool:
        """Look, before an epoch, for what has changed; return whether they are others now.

        Raises:
            Declined: they cannot serve the epoch.
        """

    @property
    def num_bytes(self) -> int:
        """Memory of the samples."""
        return sum(column.num_bytes for column in self.columns)

    def to_host(self) -> None:
        """Move the samples off the device, for good."""
        for column in self.columns:
            column.codes = column.codes.cpu()

    def as_batch(self, leaves: list[Any]) -> Any:
        """Return one leaf a column in the form of a batch."""
        if self._is_flat:
            return leaves
        rows = iter(leaves)
        return map_leaves(self._template, lambda _: next(rows))

    def _take_form(self, batch: Any) -> None:
        for _, leaf in iterate_leaves(batch):
            if isinstance(leaf, torch.Tensor) and type(leaf) is not torch.Tensor:
                raise Declined(
                    f"its batches hold a {type(leaf).__name__}, which may compute otherwise than a "
                    f"plain tensor; give samples as plain tensors"
                )
        self._template = map_leaves(batch, lambda _: None)
        # what default_collate makes of tuples of tensors
        self._is_flat = type(batch) is list and all(map(torch.is_tensor, batch))


class TensorSamples(ResidentSamples):
    """The tensors of a data set that is known to be made of them; its own where the device is.

    Args:
        loader: of the data set.
        device: where the samples go.
        budget: bytes that may be copied there.

    Raises:
        Declined: it stays on its loader; the text says why.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device, budget: int) -> None:
        super().__init__(loader, device, budget)
        self._where = device
        self._take()

    def to_host(self) -> None:
        """Move the samples off the device, for good; those taken later too."""
        self._where = torch.device("cpu")
        super().to_host()

    def renew(self) -> bool:
        """Take the tensors anew where the user changed them; return whether that was so.

        Raises:
            Declined: that cannot be.
        """
        if self._holdings.are_as_before():
            return False
        if not is_known_pure(self._loader.dataset):
            raise Declined("its data set was replaced")
        self._take()
        return True

    def _take(self) -> None:
        try:
            self._holdings = Holdings(self._loader.dataset)
            tensors, self.row_of = flatten(self._loader.dataset)
        except ValueError as error:
            raise Declined(str(error)) from None
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        copied = sum(
            tensor.numel() * tensor.element_size()
            for tensor in tensors
            if tensor.device != self._device
        )
        refuse_over_budget(num_bytes, copied, self._budget)
        self.columns = []  # before there are new ones: they may take much memory
        with declining_without_memory():
            self.columns = [Column.of_tensor(tensor, self._where) for tensor in tensors]
        self._take_form(default_collate([self._loader.dataset[0]]))


class ReadSamples(ResidentSamples):
    """The samples of any data set, each read once.

    They are read by the loader's own workers where that takes long, watching the global random
    states, and some are read again and compared; a few more each epoch.

    Args:
        loader: of the data set.
        device: where the samples go.
        budget: bytes that they may take.
        role: the argument's name, for messages.
        say: takes a line for the user when reading will take a while.
        show: shows how far it is then.

    Raises:
        Declined: it stays on its loader; the text says why.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        device: torch.device,
        budget: int,
        role: str,
        say: Callable[[str], None],
        show: ShowReading,
    ) -> None:
        super().__init__(loader, device, budget)
        self._role, self._say, self._show = role, say, show
        self._read_all()

    def renew(self) -> bool:
        """Compare a few samples again; they are never others.

        Raises:
            Declined: they have changed.
        """
        before = RandomStates.read()
        attributes = DatasetAttributes.read(self._loader.dataset)
        num_rows = len(self.columns[0].codes)
        generator = torch.Generator().manual_seed(time.time_ns() % 2**63)
        chosen = torch.randint(num_rows, (_NUM_RECHECK,), generator=generator).tolist()
        try:
            changed = self._differs(chosen) or bool(before.moved())
        finally:
            before.restore()
            attributes.restore()
        if changed:
            raise Declined("its samples have changed since they were read")
        return False

    def _read_all(self) -> None:
        dataset: Any = self._loader.dataset
        before = RandomStates.read()
        attributes = DatasetAttributes.read(dataset)
        try:
            with contextlib.closing(self._watched_batches(dataset)) as batches:
                for batch, used in batches:
                    if used:
                        raise Declined(
                            f"reading samples draws random numbers ({', '.join(used)}); "
                            f"do the random part as a batch_transform on the device"
                        )
                    self._append(batch, len(dataset))
            step = max(len(dataset) // _NUM_REREAD, 1)
            spread = list(range(0, len(dataset), step))
            if self._differs(spread):
                raise Declined("a sample read twice is not the same; make reading depend on "
                               "the index alone")  # fmt: skip
            if before.moved():
                raise Declined("reading samples draws random numbers")
        except Declined:
            raise
        except Exception as error:
            raise Declined(f"reading its samples one by one failed ({error})") from error
        finally:
            before.restore()
            attributes.restore()
        with declining_without_memory():
            for column in self.columns:
                column.codes = column.codes.to(self._device)

    def _watched_batches(self, dataset: Any) -> Generator[tuple[Any, tuple[str, ...]], None, None]:
        """Read all samples once, in order; through workers when the first batch was slow."""
        watched = WatchedDataset(dataset)
        first = list(range(min(_FIRST_BATCH, len(dataset))))
        started = time.perf_counter()
        yield watched_collate(watched.__getitems__(first))
        seconds = (time.perf_counter() - started) / len(first) * len(dataset)
        num_workers, is_slow = 0, seconds > SLOW_SECONDS
        if is_slow:
            num_workers = self._loader.num_workers
            seconds /= max(num_workers, 1)
            self._say(
                f"reading all of {self._role} once, about {seconds:.0f} s by its first "
                f"{len(first)} samples"
            )
        rest: DataLoader[Any] = DataLoader(
            watched,
            batch_sampler=[
                list(range(start, min(start + _READ_BATCH, len(dataset))))
                for start in range(len(first), len(dataset), _READ_BATCH)
            ],
            collate_fn=watched_collate,
            num_workers=num_workers,
            multiprocessing_context=self._loader.multiprocessing_context if num_workers else None,
            generator=torch.Generator().manual_seed(0),  # leaves torch's own alone
        )
        yield from self._show(self._role, rest, _READ_BATCH) if is_slow else rest

    def _append(self, batch: Any, num_rows: int) -> None:
        leaves = [leaf for _, leaf in iterate_leaves(batch)]
        if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise Declined("its samples hold other things than numbers and tensors")
        if any(leaf.requires_grad for leaf in leaves):
            raise Declined("its samples require gradients")
        if not self.columns:
            self._take_form(batch)
            num_samples = len(leaves[0])
            num_bytes = 0
            for leaf in leaves:
                narrowest = choose_encodings(leaf)[0].dtype
                num_bytes += leaf[0].numel() * narrowest.itemsize * num_rows
            refuse_over_budget(num_bytes, num_bytes, self._budget)
            if any(len(leaf) != num_samples for leaf in leaves):
                raise Declined("its samples do not stack to one row each")
            self.columns = [Column(num_rows, leaf) for leaf in leaves]
        if len(leaves) != len(self.columns):
            raise Declined("its samples differ in structure")
        for column, leaf in zip(self.columns, leaves, strict=True):
            column.append(leaf)
        # a column may have been widened
        refuse_over_budget(self.num_bytes, self.num_bytes, self._budget)

    def _differs(self, indices: list[int]) -> bool:
        """Read samples again and tell whether any differs from what is stored."""
        again = default_collate(read_samples(self._loader.dataset, indices))
        rows = torch.tensor(indices, device=self.columns[0].codes.device)
        stored = [column.gather(rows).cpu() for column in self.columns]
        leaves = [leaf for _, leaf in iterate_leaves(again)]
        return len(leaves) != len(stored) or not all(
            isinstance(leaf, torch.Tensor) and same_bits(leaf, column)
            for leaf, column in zip(leaves, stored, strict=True)
        )
