"""One table: every contestant on one job, in turn, in fresh processes.

python -m benchmarks.run image --repeats 3 --epochs 2
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import CONTESTANTS, run_contestant
from benchmarks.jobs import JOBS
from benchmarks.machine import describe_machine

FIELDS = (
    "contestant",
    "steady_epoch_seconds",
    "fastest",
    "slowest",
    "first_epoch_seconds",
    "ratio_to_handwritten",
    "val_acc",
    "peak_memory_mib",
)


def run_here(options: argparse.Namespace) -> None:
    """Run one contestant in this process and print its result as JSON."""
    if options.threads:
        torch.set_num_threads(options.threads)
    job = JOBS[options.job](options.scale)
    try:
        epochs, score = run_contestant(options.one, job, options.epochs, options.seed)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"epochs": epochs, "val_acc": score, "peak_memory_mib": peak}))


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run all contestants, interleaved: A B C, A B C, ..."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for repeat in range(options.repeats):
        for name in list(runs):
            command = [
                sys.executable, "-m", "benchmarks.run", options.job, "--one", name,
                "--epochs", str(options.epochs), "--scale", str(options.scale),
                "--seed", str(repeat), "--threads", str(options.threads),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
                del runs[name]
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            if "missing" in result:
                print(f"{name}: not installed ({result['missing']})")
                del runs[name]
                continue
            runs[name].append(result)
            shown = ", ".join(f"{seconds:.2f}" for seconds in result["epochs"])
            print(f"{name}: {shown} s an epoch, val_acc {result['val_acc']:.4f}", flush=True)
    return runs


def tabulate(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row a contestant: medians over repeats of the fastest epoch after the first."""
    rows = []
    steady = {
        name: [min(run["epochs"][1:] or run["epochs"]) for run in results]
        for name, results in runs.items()
    }
    base = steady.get("handwritten")
    for name, results in runs.items():
        seconds = steady[name]
        ratios = [own / other for own, other in zip(seconds, base or seconds, strict=False)]
        rows.append(
            {
                "contestant": name,
                "steady_epoch_seconds": round(statistics.median(seconds), 4),
                "fastest": round(min(seconds), 4),
                "slowest": round(max(seconds), 4),
                "first_epoch_seconds": round(
                    statistics.median(run["epochs"][0] for run in results), 4
                ),
                "ratio_to_handwritten": round(statistics.median(ratios), 3) if base else None,
                "val_acc": round(statistics.median(run["val_acc"] for run in results), 4),
                "peak_memory_mib": round(max(run["peak_memory_mib"] for run in results)),
            }
        )
    return sorted(rows, key=lambda row: row["steady_epoch_seconds"])


def write(options: argparse.Namespace, runs: Any, rows: list[dict[str, Any]]) -> Path:
    """Write JSON, CSV and a bar chart; return the JSON's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    machine = describe_machine()
    if options.threads:
        machine["threads"] = options.threads
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stem = options.out / f"{machine['date']}-{options.job}-{device}"
    settings = {
        name: getattr(options, name) for name in ("job", "epochs", "repeats", "scale", "threads")
    }
    result = {"machine": machine, "settings": settings, "rows": rows, "runs": runs}
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    figure = Figure(figsize=(8, 0.5 + 0.4 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [row["contestant"] for row in rows][::-1]
    seconds = [row["steady_epoch_seconds"] for row in rows][::-1]
    colours = ["#e8743b" if name.startswith("hotloop") else "#5b8def" for name in names]
    bars = axes.barh(names, seconds, color=colours)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.set_xlabel(f"seconds an epoch after the first, {options.job} on {device}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(stem.with_suffix(".png"))
    return path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CONTESTANTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.one:
        run_here(options)
        return
    runs = measure(options)
    rows = tabulate(runs)
    path = write(options, runs, rows)
    widths = {field: max(len(field), 14) for field in FIELDS}
    print("  ".join(f"{field:>{widths[field]}}" for field in FIELDS))
    for row in rows:
        print("  ".join(f"{row[field]!s:>{widths[field]}}" for field in FIELDS))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
