"""From single runs to rows of a table: medians, spread and ratios."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path
from typing import Any

FIELDS = (
    "variant",
    "contestant",
    "runs",
    "seconds",
    "fastest",
    "slowest",
    "ratio",
    "train_seconds",
    "val_seconds",
    "first_epoch_seconds",
    "fit_seconds",
    "fit_ratio",
    "metric",
    "shown_metric",
    "as_good",
    "peak_memory_mib",
    "memory_before_mib",
    "device_peak_mib",
)
BASE = "handwritten"
ACCURACY_TOLERANCE, LOSS_TOLERANCE = 0.05, 0.05
Runs = dict[str, dict[str, list[dict[str, Any]]]]
"""Variant, contestant, then one result of ``benchmarks.child`` for each repeat."""


def summarise(runs: Runs) -> list[dict[str, Any]]:
    """Return one row for each variant and contestant, the fastest of a variant first.

    ``seconds`` is the main figure: an epoch's seconds once it is warm (the median of a run's
    epochs after the first; the first where there is but one), or those to the first step. Ratios
    are to the hand-written loop of the same repeat; all figures are medians over the repeats.
    """
    rows = []
    for variant, by_contestant in runs.items():
        base = by_contestant.get(BASE, [])
        own = [
            _row(variant, contestant, results, base)
            for contestant, results in by_contestant.items()
            if results
        ]
        rows += sorted(own, key=lambda row: row["seconds"])
    return rows


def _row(
    variant: str, contestant: str, results: list[dict[str, Any]], base: list[dict[str, Any]]
) -> dict[str, Any]:
    seconds = [main_seconds(result) for result in results]
    row: dict[str, Any] = {
        "variant": variant,
        "contestant": contestant,
        "runs": len(results),
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "ratio": _ratio(results, base, main_seconds),
        "peak_memory_mib": _mebibytes(results, "peak_memory_bytes"),
        "memory_before_mib": _mebibytes(results, "memory_before_bytes"),
        "device_peak_mib": _mebibytes(results, "device_peak_bytes"),
    }
    if "epochs" in results[0]:
        row |= {
            "train_seconds": statistics.median(_steady(result, 0) for result in results),
            "val_seconds": statistics.median(_steady(result, 1) for result in results),
            "first_epoch_seconds": statistics.median(sum(r["epochs"][0]) for r in results),
            "fit_seconds": statistics.median(result["fit_seconds"] for result in results),
            "fit_ratio": _ratio(results, base, lambda result: float(result["fit_seconds"])),
            "metric": statistics.median(result["metric"] for result in results),
            "shown_metric": _median_or_none(result["shown_metric"] for result in results),
            "as_good": _as_good(results, base),
        }
    return {field: row.get(field) for field in FIELDS}


def main_seconds(result: dict[str, Any]) -> float:
    """Return a run's main figure: seconds of a warm epoch, or to the first step."""
    if "seconds" in result:
        return float(result["seconds"])
    epochs = [float(sum(epoch)) for epoch in result["epochs"]]
    return statistics.median(epochs[1:] or epochs)


def _steady(result: dict[str, Any], part: int) -> float:
    parts = [float(epoch[part]) for epoch in result["epochs"]]
    return statistics.median(parts[1:] or parts)


def _ratio(results: list[dict[str, Any]], base: list[dict[str, Any]], figure: Any) -> float | None:
    """Return the median of the ratios repeat by repeat: a noisy minute hits both sides."""
    ratios = [
        figure(own) / figure(other)
        for own, other in zip(results, base, strict=False)
        if figure(other)
    ]
    return statistics.median(ratios) if ratios else None


def _as_good(results: list[dict[str, Any]], base: list[dict[str, Any]]) -> bool | None:
    """Tell whether the trained net is as good as the hand-written loop's, noise aside."""
    if not base:
        return None
    own = statistics.median(float(result["metric"]) for result in results)
    other = statistics.median(float(result["metric"]) for result in base)
    if math.isnan(own):
        return False
    if base[0]["shown_metric"] is None:  # a loss
        return own <= other * (1 + LOSS_TOLERANCE)
    return own >= other - ACCURACY_TOLERANCE


def _median_or_none(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mebibytes(results: list[dict[str, Any]], field: str) -> float | None:
    known = [result[field] for result in results if result.get(field) is not None]
    return round(max(known) / 2**20, 1) if known else None


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def show(result: dict[str, Any]) -> None:
    """Print a result's rows as a table, and below it who was left out and why."""
    from rich.console import Console
    from rich.table import Table

    machine = result["machine"]
    table = Table(
        title=f"{result['job']}: {result['title']}\n{result['device_name'] or machine['cpu']}, "
        f"{result['threads']} threads, torch {machine['versions']['torch']}, "
        f"{'; '.join(sorted(set(result['data'].values())))}"
    )
    columns = {
        "contestant": "contestant",
        "seconds": f"s to the {result['measure']}"
        if result["measure"] == "first step"
        else "s an epoch",
        "spread": "range",
        "ratio": "ratio",
        "train_seconds": "train",
        "val_seconds": "val",
        "first_epoch_seconds": "first epoch",
        "fit_seconds": "all",
        "metric": "val accuracy" if result["metric"] == "accuracy" else "final loss",
        "peak_memory_mib": "peak MiB",
        "device_peak_mib": "GPU MiB",
    }
    rows = [
        {**row, "spread": f"{row['fastest']:.4g} - {row['slowest']:.4g}"} for row in result["rows"]
    ]
    columns = {
        key: title for key, title in columns.items() if any(r[key] is not None for r in rows)
    }
    if len(result["data"]) > 1:
        columns = {"variant": "job", **columns}
    for key, title in columns.items():
        table.add_column(title, justify="left" if key in ("variant", "contestant") else "right")
    for row in rows:
        cells = [_cell(row[key]) for key in columns]
        table.add_row(*cells, style="bold" if row["contestant"].startswith("hotloop") else "")
    console = Console(width=max(Console().width, 140))
    console.print(table)
    for row in rows:
        if row["as_good"] is False:
            console.print(f"{row['contestant']} learned less than the hand-written loop")
    for name, reason in result["left_out"].items():
        console.print(f"left out: {name} ({reason})", markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
