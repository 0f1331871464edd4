"""Everything that was measured, as JSON and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

from hotloop.experiments.bench.outcome import Outcome, Row


def write_json(outcome: Outcome, path: Path) -> None:
    """Write the whole outcome."""
    path.write_text(json.dumps(dataclasses.asdict(outcome), indent=1) + "\n")


def read_json(path: Path) -> Outcome:
    """Return what ``write_json`` wrote."""
    fields = json.loads(path.read_text())
    return Outcome(**{**fields, "rows": [Row(**row) for row in fields["rows"]]})


def write_csv(outcome: Outcome, path: Path) -> None:
    """Write a line for each experiment, device and form; seconds, bytes and shares as numbers."""
    names = [field.name for field in dataclasses.fields(Row)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in outcome.rows)
