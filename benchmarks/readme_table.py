"""Write the README's table and `results/README.md` from the newest results.

python -m benchmarks.readme_table
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.jobs import JOBS
from benchmarks.table import BASE

HERE = Path(__file__).parent
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
OWN = "hotloop"


def newest_results(folder: Path) -> list[dict[str, Any]]:
    """Return the newest full result of each job and device; quick runs are none."""
    results = []
    for device in ("cuda", "cpu"):
        for job in JOBS:
            # names begin with the date
            found = sorted(folder.glob(f"????-??-??-{job}-{device}.json"))
            if found:
                results.append(json.loads(found[-1].read_text()))
    return results


def make_overview(results: list[dict[str, Any]]) -> str:
    """Return the ratios to the hand-written loop of all jobs of one device as Markdown."""
    shown = [
        result
        for result in results
        if len(result["data"]) == 1
        and JOBS[result["job"]].in_overview
        and any(row["contestant"] == BASE for row in result["rows"])
    ]
    by_job = {r["job"]: {row["contestant"]: row for row in r["rows"]} for r in shown}
    names = [name for name in CONTESTANTS if any(name in rows for rows in by_job.values())]
    names.sort(key=lambda name: (not name.startswith(OWN), name == BASE))
    lines = [
        f"| s to the hand-written loop's | {' | '.join(by_job)} |",
        "|---|" + "--:|" * len(by_job),
    ]
    for name in names:
        cells = [_ratio(rows.get(name)) for rows in by_job.values()]
        title = f"**{name}**" if name == OWN else name
        lines.append(f"| {title} | {' | '.join(cells)} |")
    seconds = ", ".join(f"{job} {rows[BASE]['seconds']:.3g} s" for job, rows in by_job.items())
    jobs_at: dict[str, list[str]] = {}
    for result in shown:
        jobs_at.setdefault(_place(result), []).append(result["job"])
    several = len(jobs_at) > 1
    places = "; ".join(
        f"{', '.join(jobs)}: {place}" if several else place for place, jobs in jobs_at.items()
    )
    lines += ["", f"An epoch of the hand-written loop: {seconds}.", "", f"{places}."]
    if any("\\*" in line for line in lines):
        lines.append("\\* learned less than the hand-written loop.")
    return "\n".join([*lines, ""])


def _ratio(row: dict[str, Any] | None) -> str:
    if row is None or row["ratio"] is None:
        return ""
    return f"{row['ratio']:.2f}" + ("\\*" if row["as_good"] is False else "")


def _place(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = result["device_name"] or f"{machine['cpu']}, {result['threads']} threads"
    return f"{where}, torch {machine['versions']['torch']}"


def make_table(result: dict[str, Any]) -> str:
    """Return one result as Markdown."""
    machine = result["machine"]
    measured = "s to the first step" if result["measure"] == "first step" else "s an epoch"
    metric = "val accuracy" if result["metric"] == "accuracy" else "final loss"
    several = len(result["data"]) > 1
    columns = ["contestant", measured, "range", "to the hand-written loop", metric, "peak MiB"]
    columns = ["job", *columns] if several else columns
    lines = [
        f"## {result['job']}, {result['device']}",
        "",
        f"{result['title'][:1].upper()}{result['title'][1:]}. {_place(result)}, {machine['date']}, "
        f"commit {machine['commit'] or 'unknown'}, median of {result['repeats']}.",
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
    """Replace what stands between the README's markers, and write all tables beside the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    options = parser.parse_args()
    text = options.readme.read_text()
    if START not in text or END not in text:
        raise SystemExit(f"{options.readme} has no markers: put {START} and {END} into it.")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    results = newest_results(options.results)
    overviews = [
        make_overview(of_device)
        for device in ("cuda", "cpu")
        if (of_device := [r for r in results if r["device"] == device])
    ]
    options.readme.write_text("\n".join([f"{before}{START}", *overviews, f"{END}{after}"]))
    page = options.results / "README.md"
    heading = "# Results\n\nWritten by `python -m benchmarks.readme_table` from the files here.\n"
    page.write_text("\n".join([heading, *map(make_table, results)]))
    print(f"{len(results)} tables in {page}, their ratios in {options.readme}")


if __name__ == "__main__":
    main()
