"""Everything that was measured, as JSON and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

from hotloop.experiments.bench.outcome import Outcome, Row


def write_json(outcome: Outcome, path: Path) -> None:
    """Write the whole outcome."""
    path.write_text(json.dumps(dataclasses.asdict(outcome), indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Outcome:
    """Return what ``write_json`` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**{**fields, "rows": [Row(**row) for row in fields["rows"]]})


def write_csv(outcome: Outcome, path: Path) -> None:
    """Write a line for each experiment, device and form; seconds, bytes and shares as numbers.

    Each line has the hardware's name, torch's version and the date, so that tables of several
    machines can be put together.
    """
    names = [field.name for field in dataclasses.fields(Row)]
    run = {"torch": outcome.versions["torch"], "date": outcome.date, "quick": outcome.quick}
    hardware = {info["device"]: info["name"] for info in outcome.devices}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, "hardware", *run])
        writer.writeheader()
        writer.writerows(
            dataclasses.asdict(row) | {"hardware": hardware[row.device]} | run
            for row in outcome.rows
        )
