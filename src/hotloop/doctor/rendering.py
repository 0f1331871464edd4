"""A diagnosis as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hotloop.doctor.findings import NUMBERS, Change, Diagnosis

_BESIDE_ARGUMENT = 68  # columns in which the rest of a change, with its note, can be read


def render(diagnosis: Diagnosis) -> Any:
    """Return what rich prints."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    total = diagnosis.total_seconds
    parts: list[Any] = [
        Text(f"bottleneck: {diagnosis.bottleneck}", style="bold"),
        Text(diagnosis.explanation),
    ]
    parts.append(Text(f"on {diagnosis.device}, an epoch of {diagnosis.num_batches:,} batches:"))
    table = Table()
    for column in ("part", "seconds", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, value in diagnosis.epoch_seconds.items():
        table.add_row(name, f"{value:.3g}", f"{value / total:.0%}" if total else "")
    table.add_row("all", f"{total:.3g}", "", style="bold")
    table.add_row("without the bottleneck", f"{diagnosis.ceiling_seconds:.3g}", "")
    # rates that were measured under load, or in another precision, are no limit
    if diagnosis.physical_seconds is not None and diagnosis.physical_seconds <= total:
        table.add_row("at this device's measured rates", f"{diagnosis.physical_seconds:.3g}", "")
    parts.append(table)
    if diagnosis.copy_seconds is not None:
        parts.append(Text(f"copying a batch to the device: {diagnosis.copy_seconds * 1e3:.3g} ms"))
    if diagnosis.loader:
        table = Table(title="the training loader alone")
        for column in ("workers", "batches/s", "s to the first batch"):
            table.add_column(column, justify="right")
        for row in diagnosis.loader:
            table.add_row(
                str(row.num_workers), f"{row.batches_per_second:.3g}", f"{row.startup_seconds:.2g}"
            )
        parts.append(table)
    if diagnosis.changes:
        parts.append(_Changes(diagnosis.changes))
    parts += [
        Text.assemble(("mistake: ", "bold"), f"{mistake.text}. {mistake.mend}")
        for mistake in diagnosis.mistakes
    ]
    parts += [Text(f"note: {note}") for note in diagnosis.notes]
    busy = diagnosis.load_average
    parts.append(
        Text(
            f"measured in {diagnosis.seconds_used:.1f} s"
            + ("" if busy is None else f"; load average of the machine before: {busy:.1f}")
        )
    )
    return Group(*parts)


class _Changes:
    """The table of what to do; in a narrow terminal the notes are below it."""

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        del console
        longest = max(len(change.argument) for change in self.changes)
        wide = longest + _BESIDE_ARGUMENT <= options.max_width
        table = Table(title="what to do")
        table.add_column("gain", justify="right", overflow="fold")
        table.add_column("write", no_wrap=wide, overflow="fold")  # it is to be copied: never cut
        for column in ("numbers", "how", "") if wide else ("numbers", "how"):
            table.add_column(column, overflow="fold")
        for change in self.changes:
            row = [f"{change.gain:.2f}x", escape(change.argument), NUMBERS[change.numbers]]
            row += [change.how, escape(change.note)] if wide else [change.how]
            table.add_row(*row)
        yield table
        if not wide:
            yield from (Text(f"{c.argument}: {c.note}") for c in self.changes if c.note)
