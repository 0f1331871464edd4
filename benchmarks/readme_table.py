"""Write the README's tables from the newest results: ``python -m benchmarks.readme_table``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.jobs import JOBS

HERE = Path(__file__).parent
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"


def newest_results(folder: Path) -> list[dict[str, Any]]:
    """Return the newest full result of each job and device; quick runs are none."""
    results = []
    for job in JOBS:
        for device in ("cuda", "cpu"):
            # names begin with the date
            found = sorted(folder.glob(f"????-??-??-{job}-{device}.json"))
            if found:
                results.append(json.loads(found[-1].read_text()))
    return results


def make_table(result: dict[str, Any]) -> str:
    """Return one result as Markdown."""
    machine = result["machine"]
    where = result["device_name"] or f"{machine['cpu']}, {result['threads']} threads"
    measured = "s to the first step" if result["measure"] == "first step" else "s an epoch"
    metric = "val accuracy" if result["metric"] == "accuracy" else "final loss"
    several = len(result["data"]) > 1
    columns = ["contestant", measured, "range", "to the hand-written loop", metric, "peak MiB"]
    columns = ["job", *columns] if several else columns
    lines = [
        f"**{result['job']}**: {result['title']}. {where}, torch {machine['versions']['torch']}, "
        f"{machine['date']}, commit {machine['commit'] or 'unknown'}, median of "
        f"{result['repeats']}.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for row in result["rows"]:
        cells = [row["variant"]] if several else []
        cells += [
            row["contestant"],
            f"{row['seconds']:.3g}",
            f"{row['fastest']:.3g} - {row['slowest']:.3g}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            "" if row["metric"] is None else f"{row['metric']:.3f}",
            "" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    left_out = [f"{name} ({reason})" for name, reason in result["left_out"].items()]
    lines += ["", f"Left out: {'; '.join(left_out)}."] if left_out else []
    return "\n".join([*lines, ""])


def main() -> None:
    """Replace what stands between the markers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    options = parser.parse_args()
    text = options.readme.read_text()
    if START not in text or END not in text:
        raise SystemExit(f"{options.readme} has no markers: put {START} and {END} into it.")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    tables = [make_table(result) for result in newest_results(options.results)]
    options.readme.write_text("\n".join([f"{before}{START}", *tables, f"{END}{after}"]))
    print(f"{len(tables)} tables in {options.readme}")


if __name__ == "__main__":
    main()
