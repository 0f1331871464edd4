"""Whole data sets as tensors on the training device, gathered by index there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from hotloop.data.adapt import BatchSource
from hotloop.data.budget import resident_budget
from hotloop.data.column import Column
from hotloop.data.declined import Declined
from hotloop.data.occurring import DrawnIndices
from hotloop.data.purity import is_known_pure, reason_against
from hotloop.data.resident_samples import ReadSamples, ShowReading, TensorSamples
from hotloop.data.sampling import IndexBatches, replay_is_faithful
from hotloop.data.tensor_datasets import OutOfRangeError, rows_at
from hotloop.data.workers import AdaptiveSource
from hotloop.errors import DataError
from hotloop.memory import is_out_of_memory, out_of_memory
from hotloop.nested import copies_behind

# a larger copy from pageable memory waits for the device ("API synchronization behavior" in CUDA's
# runtime API reference)
_STAGED_BYTES = 1 << 15
_GATHER_BYTES = 1 << 18  # of small batches that are gathered at once, to stay in a cache
_DEVICE_GATHER_BYTES = 1 << 26  # on an accelerator, where launches cost more than memory


def _say_nothing(text: str) -> None:
    del text


def _show_nothing(role: str, batches: DataLoader[Any], batch_size: int) -> Iterator[Any]:
    del role, batch_size
    return iter(batches)


class ResidentSource(BatchSource):
    """Batches of a loader, from memory where that is proven to give the same ones.

    The samples are there before training (``TensorSamples``, ``ReadSamples``) and looked at again
    each epoch. Order, last batch, samplers and the use of random numbers are the loader's
    (``IndexBatches``).

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
        self._say = say
        reason = reason_against(loader, num_epochs)
        if reason is not None:
            raise Declined(reason)
        if not replay_is_faithful():
            raise Declined("this version of torch draws random numbers in an order not known")
        self._loader: DataLoader[Any] = loader
        self._drawn = DrawnIndices(loader)
        self._gathered_last: torch.Tensor | None = None  # the rows of a batch
        self.given_up: str | None = None
        budget = resident_budget(device, budget_share)
        self._samples = (
            TensorSamples(loader, device, budget)
            if is_known_pure(loader.dataset)
            else ReadSamples(loader, device, budget, role, say, show)
        )
        # on a CPU the other thread would take time from the steps
        self._index_batches = IndexBatches(loader, ahead=device.type != "cpu")

    @property
    def num_bytes(self) -> int:
        """Memory of the resident data."""
        return self._samples.num_bytes

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
        return any(column.codes.device.type != "cpu" for column in self._samples.columns)

    def release(self) -> bool:
        """Move the data to the host, batches are copied from there; False where it is there."""
        moved = self.on_accelerator
        self._drawn.forget()
        self._samples.to_host()
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
            self._look_again()
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

    def _look_again(self) -> None:
        """Look for what the user changed since the last epoch; give the samples up if need be."""
        try:
            if self._samples.renew():
                self._drawn.forget()
        except Declined as declined:
            self.given_up = str(declined)
            self._say(f"{self.role} goes back to its loader: {self.given_up}")

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
        as_batch = self._samples.as_batch
        for parts in zip(*columns, strict=True):
            # with a count of versions of its own: what is written in one batch is no other's
            yield as_batch([part.data for part in parts])

    def _row_bytes(self) -> int:
        """Return the size of a sample as the net gets it."""
        columns = self._samples.columns
        return sum(column.shape.numel() * column.dtype.itemsize for column in columns)

    def _indices_to_check(self) -> Any:
        """Return the integers that may be drawn, in the form of a batch."""
        samples, last = self._samples, self._gathered_last
        return samples.as_batch(self._drawn.of(samples.columns, samples.row_of, last))

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
        return self._samples.as_batch(self._gather_columns(indices))

    def _gather_columns(self, indices: torch.Tensor) -> list[torch.Tensor]:
        samples = self._samples
        columns, row_of = samples.columns, samples.row_of
        num_rows = len(columns[0].codes if row_of is None else row_of)
        try:
            indices = rows_at(indices, num_rows)
        except OutOfRangeError as error:  # on a device, one that ends its use
            wrong = error.low if error.high < num_rows else error.high
            raise DataError(
                f"the sampler of {self.role} gives the index {wrong}, and its data set has "
                f"{num_rows} samples: give indices below that."
            ) from None
        if row_of is not None:
            indices = row_of[indices]
        try:
            return self._columns_at(columns, indices)
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
        return self._columns_at(columns, indices)

    def _columns_at(self, columns: list[Column], indices: torch.Tensor) -> list[torch.Tensor]:
        """Return the rows at indices that are in range, on the device of the run."""
        where = columns[0].codes.device
        if where.type == "cuda" and indices.nbytes > _STAGED_BYTES:
            indices = indices.pin_memory()
        indices = indices.to(where, non_blocking=copies_behind(where))
        rows = [column.gather(indices) for column in columns]
        if where != self.device:  # released, to make room on the device
            behind = copies_behind(self.device)
            rows = [row.to(self.device, non_blocking=behind) for row in rows]
        return rows


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


def _size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return f"{math.ceil(num_bytes / 2**10):,} KiB"
    return f"{num_bytes / 2**20:,.1f} MiB"
