"""The command ``hotloop devices``."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hotloop.hardware import DeviceInfo

_MOST_RATES = 5  # that ``measure_rates`` measures of a device


def devices(
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Show the choice that cpu=True would make.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure copies, products and transfers, for some seconds."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """List this machine's devices, and say which one hotloop would train on and why.

    Examples:
      hotloop devices --measure

      hotloop devices --json
    """
    from rich.console import Console

    from hotloop.hardware import choose_device, software_versions

    found = _find(measure, Console(stderr=True))
    choice = choose_device(cpu)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "versions": software_versions(),
                    "devices": [dataclasses.asdict(info) for info in found],
                    "choice": {
                        "device": str(choice.device),
                        "name": choice.name,
                        "reason": choice.reason,
                    },
                },
                indent=1,
            )
        )
        return
    console = Console()
    _print_devices(console, found)
    if measure:
        _print_rates(console, found)
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    for line in (
        versions,
        f"accelerators: {len(found) - 1}",
        f"hotloop would train on {choice}",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def _find(measure: bool, console: Console) -> list[DeviceInfo]:
    """Return all devices; a bar on ``console`` says what is measured meanwhile."""
    from hotloop.hardware import devices as list_devices
    from hotloop.hardware import measure_rates

    found = list_devices()
    if not measure:
        return found
    import torch
    from rich.progress import Progress

    measured = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=_MOST_RATES * len(found))
        for number, info in enumerate(found):
            done = _MOST_RATES * number

            def say(text: str, name: str = info.device) -> None:
                nonlocal done
                progress.update(task, completed=done, description=f"{name}: {text}")
                done += 1

            rates = measure_rates(torch.device(info.device), say)
            measured.append(dataclasses.replace(info, rates=rates))
    return measured


def _print_devices(console: Console, found: list[DeviceInfo]) -> None:
    from hotloop.experiments.units import gibibytes

    _print_table(
        console,
        "devices",
        ("device", "name", "memory", "free", "capability", "libraries"),
        [
            (
                info.device,
                info.name,
                gibibytes(info.memory_bytes),
                gibibytes(info.free_bytes),
                info.capability,
                ", ".join(f"{name} {version}" for name, version in info.versions.items()),
            )
            for info in found
        ],
    )


def _print_rates(console: Console, found: list[DeviceInfo]) -> None:
    from hotloop.experiments.units import NOT_THERE, rate

    rows = []
    for info in found:
        if info.rates is not None:
            r = info.rates
            flops = [rate(value, "FLOP/s") for value in (r.float32, r.tf32, r.bfloat16)]
            transfers = [rate(value, "B/s") for value in (r.pinned, r.pageable)]
            rows.append((info.device, rate(r.copy, "B/s"), *flops, *transfers))
    columns = ("device", "copy", "float32", "TF32", "bfloat16", "from pinned", "from pageable")
    used = [i for i in range(len(columns)) if any(row[i] != NOT_THERE for row in rows)]
    _print_table(
        console,
        "measured: the fastest copy, products and transfers",
        [columns[i] for i in used],
        [[row[i] for i in used] for row in rows],
    )


def _print_table(console: Console, title: str, columns: Any, rows: list[Any]) -> None:
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
