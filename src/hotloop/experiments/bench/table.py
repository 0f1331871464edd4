"""The figures in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from hotloop.experiments.bench.catalogue import CATALOGUE, Experiment
from hotloop.experiments.bench.lessons import doubts, lessons
from hotloop.experiments.bench.outcome import Outcome, Row
from hotloop.experiments.units import NOT_THERE, mebibytes, seconds, share, three_digits

_WIDE = 110  # columns


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print a table for each experiment, with its lesson below it, and the start-up costs."""
    for name in outcome.measured:
        experiment = CATALOGUE[name]
        console.print(make_table(outcome, experiment, narrow=console.width < _WIDE))
        for paragraph in lessons(outcome, name):
            console.print(f"{paragraph}\n", highlight=False)
    if outcome.startup:
        console.print(make_startup_table(outcome))
    for text in (*outcome.notes, *outcome.failures, *doubts(outcome)):
        console.print(text, style="yellow", highlight=False)


def make_table(outcome: Outcome, experiment: Experiment, *, narrow: bool = False) -> Table:
    """Return one experiment's table, a row for each device and form.

    A narrow one fits 80 columns: it has ranges and shares in a second line, and the device above
    the first of its forms.
    """
    rows = outcome.rows_of(experiment.name)
    table = Table(
        title=f"{experiment.title}: {outcome.data[experiment.name]}",
        caption=f"warm: median and range of each {experiment.unit}; shares are of the device's "
        f"measured peaks; right: {experiment.expected}",
        box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD,
        pad_edge=not narrow,
        collapse_padding=narrow,
    )
    for column in ("form",) if narrow else ("device", "form"):
        table.add_column(column, no_wrap=True)
    for column in (experiment.first, f"warm {experiment.unit}", "range", "GFLOP/s", "GB/s"):
        table.add_column(column, justify="right")
    table.add_column("memory", justify="right")
    table.add_column(experiment.answer, justify="right")
    last = None
    for row in rows:
        cells = _cells(row, repeated=row.device == last)
        if narrow:
            if row.device != last and len({other.device for other in rows}) > 1:
                table.add_row(row.device, style="bold")
            cells = [cell.replace(" - ", " -\n").replace(" (", "\n(") for cell in cells[1:]]
        table.add_row(*cells)
        last = row.device
    return table


def make_startup_table(outcome: Outcome) -> Table:
    """Return what had to be done once, for each device."""
    table = Table(title="start-up: once a process, and in none of the warm figures")
    table.add_column("experiment")
    table.add_column("device")
    table.add_column("what")
    table.add_column("time", justify="right")
    for experiment, device, what, value in outcome.startup_costs():
        table.add_row(experiment, device, what, seconds(value))
    return table


def format_answer(row: Row) -> str:
    """Return an answer with the digits that matter, and a mark where it is wrong."""
    text = f"{row.answer:.1e}" if row.experiment == "matmul" else f"{row.answer:.3f}"
    return text if row.right else f"{text} WRONG"


def with_share(value: float | None, of_peak: float | None) -> str:
    """Return "64.0 (75%)", billions a second and the share of the peak."""
    return NOT_THERE if value is None else f"{three_digits(value / 1e9)} ({share(of_peak)})"


def _cells(row: Row, *, repeated: bool) -> list[str]:
    return [
        "" if repeated else row.device,
        row.form,
        seconds(row.first_seconds),
        seconds(row.median),
        f"{seconds(row.fastest)} - {seconds(row.slowest)}" if row.count > 1 else "once",
        with_share(row.flops_per_second, row.flops_share),
        with_share(row.bytes_per_second, row.bytes_share),
        NOT_THERE if row.peak_bytes is None else mebibytes(row.peak_bytes),
        format_answer(row),
    ]
