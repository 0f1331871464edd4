"""What a process measured, and what is made of the processes of one experiment."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Tell = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what is done now."""


@dataclass
class FormRun:
    """One form of an experiment, run once.

    Attributes:
        form: its name.
        first_seconds: the first product, block of steps or epoch, with all that is set up in it.
        seconds: the later ones, each divided down to one product, step or epoch.
        answer: what came out.
        peak_bytes: memory beyond what the process held before; None where nobody tells.
        detail: the same answer in more numbers ("w = (2.00, -3.00), b = 10.00").
    """

    form: str
    first_seconds: float
    seconds: list[float]
    answer: float
    peak_bytes: int | None = None
    detail: str = ""


@dataclass
class ProcessResult:
    """What one process measured.

    Attributes:
        forms: the forms that it ran.
        startup: what had to be done once, seconds by name, in order.
        flops: floating-point operations of one product, step or epoch; None where not counted.
        moved_bytes: bytes that have to be read or written for it; None where not counted.
        data: what was computed on, in words.
    """

    forms: list[FormRun]
    startup: dict[str, float] = field(default_factory=dict)
    flops: float | None = None
    moved_bytes: float | None = None
    data: str = ""


@dataclass
class Row:
    """One form of one experiment on one device, over all rounds.

    Attributes:
        experiment: its name.
        device: as torch writes it.
        form: its name.
        unit: what the seconds are for: "product", "step" or "epoch".
        first_seconds: the first product, block or epoch; the median over rounds.
        median: seconds of a warm one.
        fastest: the fastest.
        slowest: the slowest.
        count: how many warm ones were timed.
        flops_per_second: achieved, at the median; None where operations are not counted.
        flops_share: of the device's measured float32 rate.
        bytes_per_second: achieved, at the median; None where bytes are not counted.
        bytes_share: of the device's measured copy rate.
        peak_bytes: the most memory beyond the start; None where nobody tells.
        answer: the median over rounds.
        right: whether the answer is what it has to be.
        detail: the last round's answer in more numbers.
        is_timing: False for a clock that stops before the work is done, shown as a warning.
    """

    experiment: str
    device: str
    form: str
    unit: str
    first_seconds: float
    median: float
    fastest: float
    slowest: float
    count: int
    flops_per_second: float | None
    flops_share: float | None
    bytes_per_second: float | None
    bytes_share: float | None
    peak_bytes: int | None
    answer: float
    right: bool
    detail: str
    is_timing: bool


@dataclass
class Outcome:
    """Everything that ``hotloop bench`` measured.

    Attributes:
        quick: whether sizes were small.
        date: ISO, local.
        versions: of hotloop, torch, Python and the system.
        busy: processes that ran or waited a core over the last minute, when it began; None where
            the system does not tell. Above 1 the machine had other work.
        import_seconds: to start Python and import torch and hotloop.
        devices: ``DeviceInfo`` of each device as a dict, with rates.
        sizes: the sizes as a dict.
        dynamo_seconds: to import torch._dynamo, which an optimizer's first step does; 0 where
            that was not timed.
        stopped: whether Ctrl-C ended the run before all was measured.
        slow_peaks: the float32 peaks, by device, that the experiment's own product exceeded.
        data: what each experiment computed on, in words.
        work: operations and bytes of one unit, by experiment: ``{"flops": ..., "bytes": ...}``.
        startup: seconds by what had to be done once, by experiment and device.
        rows: the figures.
        failures: why an experiment has no figures on a device.
        notes: what a reader has to know of this run.
    """

    quick: bool
    date: str
    versions: dict[str, str]
    busy: float | None
    import_seconds: float
    devices: list[dict[str, Any]]
    sizes: dict[str, Any]
    dynamo_seconds: float = 0.0
    stopped: bool = False
    slow_peaks: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    work: dict[str, dict[str, float | None]] = field(default_factory=dict)
    startup: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows_of(self, experiment: str, device: str | None = None) -> list[Row]:
        """Return an experiment's rows, of one device where it is given."""
        return [
            row
            for row in self.rows
            if row.experiment == experiment and device in (None, row.device)
        ]

    def find(self, experiment: str, device: str, form: str) -> Row | None:
        """Return one row; None where there is none."""
        return next((r for r in self.rows_of(experiment, device) if r.form == form), None)

    def startup_costs(self) -> list[tuple[str, str, str, float]]:
        """Return what had to be done once: experiment, device ("" for any), what, seconds."""
        costs = [("all", "", "Python, import torch and hotloop", self.import_seconds)]
        if self.dynamo_seconds and set(self.measured) - {"matmul"}:
            what = "torch._dynamo, which an optimizer imports in its first step"
            costs.append(("trainings", "", what, self.dynamo_seconds))
        costs += [
            (experiment, device, what, value)
            for experiment, by_device in self.startup.items()
            for device, own in by_device.items()
            for what, value in own.items()
        ]
        return costs

    def rates_of(self, device: str) -> dict[str, float | None]:
        """Return a device's measured rates by name."""
        found = next(info for info in self.devices if info["device"] == device)
        return dict(found["rates"] or {})

    def name_of(self, device: str) -> str:
        """Return "cpu (AMD EPYC)"."""
        found = next(info for info in self.devices if info["device"] == device)
        return f"{device} ({found['name']})"

    @property
    def measured(self) -> list[str]:
        """The experiments that have rows, in order."""
        return list(dict.fromkeys(row.experiment for row in self.rows))


def join_runs(
    runs: list[FormRun],
    result: ProcessResult,
    rates: dict[str, float | None],
    **known: Any,
) -> Row:
    """Make a row of a form's runs.

    Args:
        runs: one a round.
        result: of any of their processes, for the work of one unit.
        rates: the device's, by name.
        **known: the remaining fields of ``Row``; "is_right" tells whether an answer is right.
    """
    seconds = [value for run in runs for value in run.seconds]
    median = statistics.median(seconds)
    answer = statistics.median(run.answer for run in runs)
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    flops = None if result.flops is None else result.flops / median
    moved = None if result.moved_bytes is None else result.moved_bytes / median
    is_right = known.pop("is_right")
    return Row(
        form=runs[0].form,
        first_seconds=statistics.median(run.first_seconds for run in runs),
        median=median,
        fastest=min(seconds),
        slowest=max(seconds),
        count=len(seconds),
        flops_per_second=flops,
        flops_share=_ratio(flops, rates.get("float32")),
        bytes_per_second=moved,
        bytes_share=_ratio(moved, rates.get("copy")),
        peak_bytes=max(peaks) if peaks else None,
        answer=answer,
        right=all(is_right(run.answer) for run in runs),
        detail=runs[-1].detail,
        **known,
    )


def _ratio(value: float | None, peak: float | None) -> float | None:
    return None if value is None or not peak else value / peak
