"""The data of a fit: where its batches are taken from while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hotloop.callbacks.progress import Progress
from hotloop.data.adapt import BatchSource
from hotloop.data.guarded import can_guard
from hotloop.data.resident import ResidentSource, make_source
from hotloop.data.tuned import tune_source


class Sources:
    """Training and validation batches, each replaced by what serves the same ones faster.

    Args:
        train: the training batches.
        val: the validation batches; None for none.
        progress: shows the reading of a data set, and what is chosen.

    Attributes:
        train: as they are served by now.
        val: likewise.
    """

    def __init__(self, train: BatchSource, val: BatchSource | None, progress: Progress) -> None:
        self.train, self.val = train, val
        self._progress = progress

    def __iter__(self) -> Iterator[BatchSource]:
        """Yield those that there are."""
        yield self.train
        if self.val is not None:
            yield self.val

    def replace(self, make: Callable[[BatchSource], BatchSource]) -> None:
        """Put what ``make`` returns of each in its place."""
        self.train = make(self.train)
        if self.val is not None:
            self.val = make(self.val)

    def make_resident(self, num_epochs: int, budget_share: float | None) -> None:
        """Serve the data from memory, where that is safe; says so once.

        Args:
            num_epochs: how often it will be iterated.
            budget_share: of the free memory; see ``resident_budget``.
        """
        rest = (num_epochs, budget_share, self._progress.message, self._show_reading)
        self.replace(lambda source: make_source(source, *rest))

    def tune(self) -> None:
        """Choose the loaders' workers while training; the numbers stay what they are."""
        self.replace(lambda source: tune_source(source, self._progress.message))

    def skip_bad_samples(self) -> None:
        """Leave out samples that cannot be read, where they are read one by one."""
        for source in self:
            source.place.skip_bad = True
            if not isinstance(source, ResidentSource) and not can_guard(source.batches):
                self._progress.message(
                    f"on_bad_sample has no effect on {source.role}: it is no plain DataLoader of "
                    f"a data set with __getitem__ and __len__"
                )

    def release_resident(self) -> bool:
        """Move resident data off the device; False when there is none there."""
        released = [source.release() for source in self if isinstance(source, ResidentSource)]
        return any(released)

    def holds_resident(self) -> bool:
        """Tell whether there is resident data on an accelerator."""
        return any(isinstance(source, ResidentSource) and source.on_accelerator for source in self)

    def _show_reading(self, role: str, batches: Any, batch_size: int) -> Iterator[Any]:
        """Yield batches of a data set that is read once, and show how far that is."""
        self._progress.start_stage(f"reading {role}", 0, len(batches))
        try:
            for batch in batches:
                yield batch
                if self._progress.advance(batch_size):
                    self._progress.show({})
        finally:
            self._progress.end_stage({})


def list_skipped(source: BatchSource, known: list[tuple[int, str]]) -> str | None:
    """Take the samples of a stage that could not be read, and add them to those that are known.

    Returns:
        A line on those not heard of before; None where there are none.
    """
    found = source.place.take_skipped()
    before = {index for index, _ in known}
    new = [(index, text) for index, text in found if index not in before]
    known += found
    if not new:
        return None
    shown = "; ".join(f"{index} ({text})" for index, text in new[:3])
    more = f" and {len(new) - 3} more" if len(new) > 3 else ""
    return f"{len(new)} samples of {source.role} could not be read and were left out: {shown}{more}"
