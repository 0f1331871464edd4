"""On a machine with CUDA: the tests that need it, then the tables, into one folder.

python -m benchmarks.gpu --out gpu-results [--quick] [--tables image,mlp] [--minutes 25]

Nothing is needed from the network. Fashion-MNIST is looked for where `hotloop.datasets` looks (the
environment variable HOTLOOP_DATA names a folder); without it the image jobs take the digits that
ship with hotloop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import JOBS
from benchmarks.machine import ROOT, describe_machine
from benchmarks.run import environment

NO_TESTS_COLLECTED = 5  # pytest's exit status


def run_logged(command: list[str], log: Path, seconds_left: float) -> dict[str, Any]:
    """Run a command with its output in ``log``; return its exit status and seconds.

    The status is None where it did not end in time, or had no time at all.
    """
    if seconds_left <= 0:
        return {"status": None, "seconds": 0.0, "reason": "no time left"}
    started = time.monotonic()
    with log.open("w") as file:
        try:
            status: int | None = subprocess.run(
                command,
                cwd=ROOT,
                env=environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds_left,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    return {"status": status, "seconds": round(time.monotonic() - started, 1)}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all files")
    parser.add_argument("--tables", default=",".join(JOBS), help="jobs, with commas")
    parser.add_argument("--only", help="contestants, with commas; all when not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="each job's own number when not given")
    parser.add_argument("--preload", action="store_true", help="import torch once for all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--minutes", type=float, default=120.0, help="for everything together")
    options = parser.parse_args(arguments)
    options.tables = options.tables.split(",")
    unknown = set(options.tables) - set(JOBS)
    if unknown:
        parser.error(f"--tables: no job is called {', '.join(sorted(unknown))}")
    return options


def table_command(job: str, options: argparse.Namespace) -> list[str]:
    """Return the command of one table."""
    command = [sys.executable, "-m", "benchmarks.run", job, "--out", str(options.out)]
    command += ["--repeats", str(options.repeats)]
    command += ["--only", options.only] if options.only else []
    command += ["--epochs", str(options.epochs)] if options.epochs else []
    command += ["--preload"] if options.preload else []
    return [*command, "--quick"] if options.quick else command


def main() -> None:
    """Run tests and tables; exit with 1 where one failed or did not end."""
    options = parse_options()
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here: python -m benchmarks.run has the CPU's tables.")
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    summary: dict[str, Any] = {
        "machine": describe_machine(),
        "device_name": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "steps": {},
    }
    report = options.out / "gpu-tests.xml"
    commands = {
        "tests": [
            sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "tests/gpu", f"--junitxml={report}",
        ],
        **{job: table_command(job, options) for job in options.tables},
    }  # fmt: skip
    for name, command in commands.items():
        done = run_logged(command, options.out / f"{name}.log", end - time.monotonic())
        summary["steps"][name] = done
        print(f"{name}: {done}", flush=True)
        # anew after each step, so that a machine that goes away leaves what was done
        (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if summary["steps"]["tests"]["status"] == NO_TESTS_COLLECTED:
        print("tests/gpu has no test for this device")
    if any(step["status"] != 0 for step in summary["steps"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
