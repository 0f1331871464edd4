"""A diagnosis as tables in a terminal."""

from __future__ import annotations

from typing import Any

from hotloop.doctor.findings import NUMBERS, Diagnosis


def render(diagnosis: Diagnosis) -> Any:
    """Return what rich prints."""
    from rich.console import Group
    from rich.markup import escape
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
    if diagnosis.physical_seconds is not None:
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
        table = Table(title="what to do")
        for column in ("gain", "write", "numbers", "how", ""):
            table.add_column(column, justify="right" if column == "gain" else "left")
        for change in diagnosis.changes:
            table.add_row(
                f"{change.gain:.2f}x",
                escape(change.argument),
                NUMBERS[change.numbers],
                change.how,
                escape(change.note),
            )
        parts.append(table)
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
