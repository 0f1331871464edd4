"""Whole data sets as tensors on the training device, gathered by index there."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as torch_default_collate

from hotloop.data.adapt import BatchSource
from hotloop.data.budget import resident_budget
from hotloop.data.encoding import AsIs, Encoding, Table, choose_encodings, same_bits
from hotloop.data.occurring import DrawnIndices
from hotloop.data.purity import (
    DatasetAttributes,
    WatchedDataset,
    is_known_pure,
    read_samples,
    reason_against,
    watched_collate,
)
from hotloop.data.random_state import RandomStates
from hotloop.data.sampling import IndexBatches, replay_is_faithful
from hotloop.data.tensor_datasets import Holdings, OutOfRangeError, flatten, rows_at
from hotloop.data.workers import AdaptiveSource
from hotloop.errors import DataError
from hotloop.memory import is_out_of_memory, out_of_memory, shortage
from hotloop.nested import copies_behind, iterate_leaves, map_leaves

_FIRST_BATCH = 32  # samples that tell how fast, how large and how pure reading is
_READ_BATCH = 256
# a larger copy from pageable memory waits for the device ("API synchronization behavior" in CUDA's
# runtime API reference)
_STAGED_BYTES = 1 << 15
_NUM_REREAD = 64  # samples compared before the take-over
_NUM_RECHECK = 4  # samples compared again each epoch
_GATHER_BYTES = 1 << 18  # of small batches that are gathered at once, to stay in a cache
_DEVICE_GATHER_BYTES = 1 << 26  # on an accelerator, where launches cost more than memory
SLOW_SECONDS = 3.0  # longer reading goes through the loader's workers


# shows how far the reading of a data set is, by its role, while its batches are taken; the last
# argument is how many samples a batch has
ShowReading = Callable[[str, DataLoader[Any], int], Iterator[Any]]


def _say_nothing(text: str) -> None:
    del text


def _show_nothing(role: str, batches: DataLoader[Any], batch_size: int) -> Iterator[Any]:
    del role, batch_size
    return iter(batches)


class Declined(Exception):  # noqa: N818 - a decision, not an error
    """The data stays on its loader; the text says why and what would change that."""


class Column:
    """One leaf of the batches, for all samples: ``(n, ...)``."""

    def __init__(self, num_rows: int, first_rows: torch.Tensor) -> None:
        self.shape, self.dtype = first_rows.shape[1:], first_rows.dtype
        self._encodings = choose_encodings(first_rows)
        self.encoding: Encoding = self._encodings.pop(0)
        self.codes = torch.empty((num_rows, *self.shape), dtype=self.encoding.dtype)
        self._num_filled = 0

    @classmethod
    def of_tensor(cls, tensor: torch.Tensor, device: torch.device) -> Column:
        """Return a column that is a whole tensor; on its own device it is not copied."""
        column = cls(0, tensor[:0])
        column.encoding = AsIs(tensor.dtype)
        column.codes = tensor.to(device)
        return column

    def append(self, rows: torch.Tensor) -> None:
        """Add rows behind those that are there.

        Raises:
            Declined: they differ in shape or dtype.
        """
        if rows.shape[1:] != self.shape or rows.dtype != self.dtype:
            raise Declined("its samples differ in shape or dtype")
        codes = self.encoding.encode(rows)
        while codes is None:
            self._widen(rows)
            codes = self.encoding.encode(rows)
        self.codes[self._num_filled : self._num_filled + len(rows)] = codes
        self._num_filled += len(rows)

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows at ``indices`` (int64 (batch,), on the column's device)."""
        return self.encoding.decode(self.codes.index_select(0, indices))

    @property
    def num_bytes(self) -> int:
        """Memory of the column."""
        return self.codes.numel() * self.codes.element_size()

    def _widen(self, rows: torch.Tensor) -> None:
        """Go on with the next encoding that also holds all rows so far."""
        filled = self.encoding.decode(self.codes[: self._num_filled])
        if isinstance(self.encoding, Table):
            extended = self.encoding.extended(rows)
            if extended is not None and extended.encode(rows) is not None:
                self._encodings.insert(0, extended)
        while True:
            self.encoding = self._encodings.pop(0)  # the last one holds anything
            codes = self.encoding.encode(filled)
            if codes is not None:
                break
        wider = torch.empty((len(self.codes), *self.shape), dtype=self.encoding.dtype)
        wider[: self._num_filled] = codes
        self.codes = wider


class ResidentSource(BatchSource):
    """Batches of a loader, from memory where that is proven to give the same ones.

    Built before training: either every sample is read once (by the loader's own workers where
    that takes long), watching the global random states, and some are read again and compared; or
    the data is known to be tensors. A few samples are compared again each epoch. Order, last
    batch, samplers and the use of random numbers are the loader's (``IndexBatches``).

    Args:
        loader: the user's.
        role: the argument's name, for messages.
        device: where batches go.
        num_epochs: how often it will be iterated.
        budget_share: of the free memory; see ``resident_budget``.
        say: takes a line for the user when reading will take a while.
        show: shows how far it is then.

    Raises:
        Declined: it stays on its loader; the text says why.
    """

    def __init__(
        self,
        loader: Any,
        role: str,
        device: torch.device,
        num_epochs: int,
        budget_share: float | None = None,
        say: Callable[[str], None] = _say_nothing,
        show: ShowReading = _show_nothing,
    ) -> None:
        super().__init__(loader, role, device)
        self._say, self._show = say, show
        reason = reason_against(loader, num_epochs)
        if reason is not None:
            raise Declined(reason)
        if not replay_is_faithful():
            raise Declined("this version of torch draws random numbers in an order not known")
        self._loader: DataLoader[Any] = loader
        self._budget = resident_budget(device, budget_share)
        self._template: Any = None
        self._is_flat = False  # a batch is a list of its columns
        self._columns: list[Column] = []
        self._row_of: torch.Tensor | None = None  # rows of a Subset's samples
        self._is_released = False
        self._drawn = DrawnIndices(loader)
        self._gathered_last: torch.Tensor | None = None  # the rows of a batch
        self._known_pure = is_known_pure(loader.dataset)
        self.given_up: str | None = None
        if self._known_pure:
            self._take_tensors()
        else:
            self._read_all()
        # on a CPU the other thread would take time from the steps
        self._index_batches = IndexBatches(loader, ahead=device.type != "cpu")

    @property
    def num_bytes(self) -> int:
        """Memory of the resident data."""
        return sum(column.num_bytes for column in self._columns)

    @property
    def runs_own_code(self) -> bool:
        """Whether reading a batch runs code of the user's in this process."""
        return self.given_up is not None

    @property
    def batches_stay(self) -> bool:
        """Whether each batch has memory of its own, into which nobody writes later."""
        return self.given_up is None or super().batches_stay

    @property
    def on_accelerator(self) -> bool:
        """Whether the data takes memory of an accelerator."""
        return any(column.codes.device.type != "cpu" for column in self._columns)

    def release(self) -> bool:
        """Move the data to the host, batches are copied from there; False where it is there."""
        moved = self.on_accelerator
        self._is_released = True
        self._drawn.forget()
        for column in self._columns:
            column.codes = column.codes.cpu()
        return moved

    def describe(self) -> str:
        """Say what is resident."""
        dataset: Any = self._loader.dataset
        return f"{self.role} is resident: {len(dataset):,} samples, {_size(self.num_bytes)}"

    def iterate_with_host(self) -> Iterator[tuple[Any, Any]]:
        """Yield ``(indices, batch on the device)``, on an accelerator with ``OccurringValues``.

        They are all that may be drawn, with an epoch's first batch, or each batch's own; else None.
        """
        if self.given_up is None:
            self.given_up = self._take_again() if self._known_pure else self._recheck()
            if self.given_up is not None:
                self._say(f"{self.role} goes back to its loader: {self.given_up}")
        if self.given_up is not None:
            yield from super().iterate_with_host()
            return
        # alone there an index out of range ends the use of the device
        is_due = on_device = self.device.type != "cpu"
        if on_device:
            self._drawn.begin_epoch()
        self.place.begin()
        if self.place.resumed is None or not self.place.resumed.ended:
            for batch in self._gathered():
                self.place.advance(None)
                yield self._indices_to_check() if is_due else None, batch
                is_due = on_device and not self._drawn.knows_rows
        self.place.end()

    def _gathered(self) -> Iterator[Any]:
        """Yield the epoch's batches; small ones are gathered several at a time, and cut apart."""
        waiting: list[torch.Tensor] = []
        if not self._index_batches.draws_at_once:
            yield from map(self._gather, self._rows())
            return
        limit = _DEVICE_GATHER_BYTES if self.on_accelerator else _GATHER_BYTES
        for rows in self._rows():
            together = max(1, min(limit // max(len(rows) * self._row_bytes(), 1), 64))
            if together == 1 and not waiting:
                yield self._gather(rows)
                continue
            waiting.append(rows)
            if len(waiting) >= together:
                yield from self._gather_many(waiting)
                waiting = []
        yield from self._gather_many(waiting)

    def _gather_many(self, several: list[torch.Tensor]) -> Iterator[Any]:
        if not several:
            return
        sizes = [len(rows) for rows in several]
        columns = [
            column.split(sizes)  # type: ignore[no-untyped-call]
            for column in self._gather_columns(torch.cat(several))
        ]
        for parts in zip(*columns, strict=True):
            # with a count of versions of its own: what is written in one batch is no other's
            yield self._as_batch([part.data for part in parts])

    def _row_bytes(self) -> int:
        """Return the size of a sample as the net gets it."""
        return sum(column.shape.numel() * column.dtype.itemsize for column in self._columns)

    def _indices_to_check(self) -> Any:
        """Return the integers that may be drawn, in the form of a batch."""
        last = self._gathered_last
        return self._as_batch(self._drawn.of(self._columns, self._row_of, last))

    def _rows(self) -> Iterator[torch.Tensor]:
        try:
            yield from self.place.open_indices(self._index_batches)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the sampler of {self.role} gives other things than indices ({error}): pass "
                f"resident_budget=0 to have it read by its loader."
            ) from error

    def _gather(self, indices: torch.Tensor) -> Any:
        self._gathered_last = indices
        return self._as_batch(self._gather_columns(indices))

    def _gather_columns(self, indices: torch.Tensor) -> list[torch.Tensor]:
        num_rows = len(self._columns[0].codes if self._row_of is None else self._row_of)
        try:
            indices = rows_at(indices, num_rows)
        except OutOfRangeError as error:  # on a device, one that ends its use
            wrong = error.low if error.high < num_rows else error.high
            raise DataError(
                f"the sampler of {self.role} gives the index {wrong}, and its data set has "
                f"{num_rows} samples: give indices below that."
            ) from None
        if self._row_of is not None:
            indices = self._row_of[indices]
        try:
            return self._columns_at(indices)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            full = out_of_memory(
                f"a batch of {self.role} of {len(indices)} samples does not fit the memory of "
                f"{self.device}",
                error,
                "pass a smaller batch_size",
            )
        # outside the handler, whose traceback holds on to what was gathered
        if not self.release():
            raise full
        self._say(f"out of memory: the resident {self.role} was moved to the host")
        return self._columns_at(indices)

    def _columns_at(self, indices: torch.Tensor) -> list[torch.Tensor]:
        """Return the rows at indices that are in range, on the device of the run."""
        where = self._columns[0].codes.device
        if where.type == "cuda" and indices.nbytes > _STAGED_BYTES:
            indices = indices.pin_memory()
        indices = indices.to(where, non_blocking=copies_behind(where))
        columns = [column.gather(indices) for column in self._columns]
        if where != self.device:  # released, to make room on the device
            behind = copies_behind(self.device)
            columns = [column.to(self.device, non_blocking=behind) for column in columns]
        return columns

    def _as_batch(self, columns: list[Any]) -> Any:
        if self._is_flat:
            return columns
        rows = iter(columns)
        return map_leaves(self._template, lambda _: next(rows))

    def _take_tensors(self) -> None:
        try:
            self._holdings = Holdings(self._loader.dataset)
            tensors, self._row_of = flatten(self._loader.dataset)
        except ValueError as error:
            raise Declined(str(error)) from None
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        copied = sum(
            tensor.numel() * tensor.element_size()
            for tensor in tensors
            if tensor.device != self.device
        )
        if copied > self._budget:
            raise Declined(_over_budget(num_bytes, self._budget))
        where = torch.device("cpu") if self._is_released else self.device
        self._columns = []  # before there are new ones: they may take much memory
        with _declining_without_memory():
            self._columns = [Column.of_tensor(tensor, where) for tensor in tensors]
        self._take_form(torch_default_collate([self._loader.dataset[0]]))
        self._drawn.forget()

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
        with _declining_without_memory():
            for column in self._columns:
                column.codes = column.codes.to(self.device)

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
                f"reading all of {self.role} once, about {seconds:.0f} s by its first "
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
        yield from self._show(self.role, rest, _READ_BATCH) if is_slow else rest

    def _append(self, batch: Any, num_rows: int) -> None:
        leaves = [leaf for _, leaf in iterate_leaves(batch)]
        if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise Declined("its samples hold other things than numbers and tensors")
        if any(leaf.requires_grad for leaf in leaves):
            raise Declined("its samples require gradients")
        if not self._columns:
            self._take_form(batch)
            num_samples = len(leaves[0])
            num_bytes = 0
            for leaf in leaves:
                narrowest = choose_encodings(leaf)[0].dtype
                num_bytes += leaf[0].numel() * narrowest.itemsize * num_rows
            if num_bytes > self._budget:
                raise Declined(_over_budget(num_bytes, self._budget))
            if any(len(leaf) != num_samples for leaf in leaves):
                raise Declined("its samples do not stack to one row each")
            self._columns = [Column(num_rows, leaf) for leaf in leaves]
        if len(leaves) != len(self._columns):
            raise Declined("its samples differ in structure")
        for column, leaf in zip(self._columns, leaves, strict=True):
            column.append(leaf)
        if self.num_bytes > self._budget:  # a column had to be widened
            raise Declined(_over_budget(self.num_bytes, self._budget))

    def _differs(self, indices: list[int]) -> bool:
        """Read samples again and tell whether any differs from what is stored."""
        again = torch_default_collate(read_samples(self._loader.dataset, indices))
        rows = torch.tensor(indices, device=self._columns[0].codes.device)
        stored = [column.gather(rows).cpu() for column in self._columns]
        leaves = [leaf for _, leaf in iterate_leaves(again)]
        return len(leaves) != len(stored) or not all(
            isinstance(leaf, torch.Tensor) and same_bits(leaf, column)
            for leaf, column in zip(leaves, stored, strict=True)
        )

    def _take_again(self) -> str | None:
        """Take the tensors anew where the user changed them; return why that cannot be, if so."""
        if self._holdings.are_as_before():
            return None
        if not is_known_pure(self._loader.dataset):
            return "its data set was replaced"
        try:
            self._take_tensors()
        except Declined as declined:
            return str(declined)
        return None

    def _recheck(self) -> str | None:
        """Compare a few samples again; return why the resident data must be given up, if so."""
        before = RandomStates.read()
        attributes = DatasetAttributes.read(self._loader.dataset)
        num_rows = len(self._columns[0].codes)
        generator = torch.Generator().manual_seed(time.time_ns() % 2**63)
        chosen = torch.randint(num_rows, (_NUM_RECHECK,), generator=generator).tolist()
        try:
            changed = self._differs(chosen) or bool(before.moved())
        finally:
            before.restore()
            attributes.restore()
        return "its samples have changed since they were read" if changed else None


def make_source(
    source: BatchSource,
    num_epochs: int,
    budget_share: float | None,
    say: Callable[[str], None],
    show: ShowReading = _show_nothing,
) -> BatchSource:
    """Return ``source`` from memory where that is safe, else as it is; say which, and why.

    In one epoch alone memory gains nothing, and why the data stays on its loader is not said.
    """
    if not isinstance(source.batches, DataLoader):
        return source
    streamed = AdaptiveSource(source, say) if source.loader_is_ours else source
    if budget_share == 0:
        return streamed
    try:
        resident = ResidentSource(
            source.batches, source.role, source.device, num_epochs, budget_share, say, show
        )
    except Declined as declined:
        if num_epochs > 1:
            say(f"{source.role} stays on its loader: {declined}")
        return streamed
    say(resident.describe())
    return resident


@contextlib.contextmanager
def _declining_without_memory() -> Iterator[None]:
    """Leave the data on its loader where there is less memory than its budget was made of."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Declined(f"memory ran out while it was put there ({shortage(error)})") from None


def _size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return f"{math.ceil(num_bytes / 2**10):,} KiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def _over_budget(num_bytes: int, budget: int) -> str:
    return (
        f"it needs {num_bytes / 2**20:,.0f} MiB and the budget is {budget / 2**20:,.0f} MiB; "
        f"raise resident_budget to have it in memory"
    )
