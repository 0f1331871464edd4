"""What a diagnosis found, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

NUMBERS = {
    "same": "same numbers",
    "rounding": "rounding differs",
    "changed": "CHANGES THE NUMBERS",
}


@dataclasses.dataclass(frozen=True)
class Change:
    """Something to do, and what it brings.

    Attributes:
        name: what is changed ("workers", "bf16", "batch_size", ...).
        argument: the exact text to write.
        seconds_before: of an epoch as it is.
        seconds_after: of an epoch with the change.
        how: "measured" in a trial of the change itself, or "predicted" from parts measured.
        numbers: "same", "rounding" or "changed": what becomes of the results.
        note: what else there is to say.
    """

    name: str
    argument: str
    seconds_before: float
    seconds_after: float
    how: str
    numbers: str = "same"
    note: str = ""

    @property
    def gain(self) -> float:
        """How many times as fast an epoch goes."""
        return self.seconds_before / max(self.seconds_after, 1e-12)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A common mistake that was seen.

    Attributes:
        kind: a short name ("sync", "print", "workers_above_cores", ...).
        text: what was seen and where.
        mend: what to write instead.
    """

    kind: str
    text: str
    mend: str


@dataclasses.dataclass(frozen=True)
class LoaderTimes:
    """A loader on its own, nobody using the batches.

    Attributes:
        num_workers: that read.
        batches_per_second: once they run.
        startup_seconds: to the first batch.
    """

    num_workers: int
    batches_per_second: float
    startup_seconds: float


@dataclasses.dataclass
class Diagnosis:
    """Where the time of an epoch goes, what bounds it, and what to do.

    Attributes:
        device: with its name.
        bottleneck: "data: decode", "data: collate", "data: storage", "data", "transfer",
            "transform", "compute: arithmetic", "compute: small batches", "metrics", "callbacks",
            "checkpoint" or "rest".
        explanation: the bottleneck in a sentence.
        epoch_seconds: of an epoch as it runs, by part, estimated from the trials.
        step_seconds: of a training step as it runs, by phase, measured.
        num_batches: of a training epoch; ``assumed_batches`` where that is not known.
        batch_size: samples of a batch.
        ceiling_seconds: of an epoch without the bottleneck: the parts that are left, measured.
        physical_seconds: of the epoch's training steps at the rates that were measured for this
            device; the longer of arithmetic and memory traffic. None where time was short.
        step_flops: floating-point operations of a training step.
        step_bytes: that its operators read and write.
        flops_per_second: float32 matrix products, measured; None where time was short.
        bytes_per_second: copies in the device's memory, measured; None where time was short.
        copy_seconds: of a batch from the host to the device, alone; None on a CPU.
        loader: the training loader alone, by number of workers.
        changes: what to do, the largest gain first.
        mistakes: common mistakes that were seen.
        notes: what was found besides, and what was not tried and why.
        seconds_used: by the diagnosis.
        load_average: of the machine in the last minute, before the trials; None where unknown.
    """

    device: str
    bottleneck: str = ""
    explanation: str = ""
    epoch_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    step_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    num_batches: int = 0
    batch_size: int = 0
    ceiling_seconds: float = 0.0
    physical_seconds: float | None = None
    step_flops: int = 0
    step_bytes: int = 0
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    copy_seconds: float | None = None
    loader: list[LoaderTimes] = dataclasses.field(default_factory=list)
    changes: list[Change] = dataclasses.field(default_factory=list)
    mistakes: list[Mistake] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds_used: float = 0.0
    load_average: float | None = None

    @property
    def total_seconds(self) -> float:
        """Of an epoch as it runs."""
        return sum(self.epoch_seconds.values())

    def rank(self) -> None:
        """Put the changes in order, the largest gain first."""
        self.changes.sort(key=lambda change: -change.gain)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; changes carry their gain."""
        plain = dataclasses.asdict(self)
        plain["total_seconds"] = self.total_seconds
        for row, change in zip(plain["changes"], self.changes, strict=True):
            row["gain"] = change.gain
        return plain

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def print(self, width: int | None = None) -> None:
        """Print the report to the terminal."""
        from rich.console import Console

        Console(width=width).print(self._rendered())

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, force_terminal=False, color_system=None)
        with console.capture() as captured:
            console.print(self._rendered())
        return captured.get()

    def _rendered(self) -> Any:
        from hotloop.doctor.rendering import render

        return render(self)
