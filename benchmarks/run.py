"""One table: every contestant on one job, in turn, each in a process of its own.

python -m benchmarks.run image --repeats 3 [--only hotloop,handwritten] [--quick] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chart import draw_chart
from benchmarks.child import LOG, Spec, run_in_folder
from benchmarks.contestants import CONTESTANTS, WHEN_NAMED
from benchmarks.jobs import JOBS
from benchmarks.jobs.image import find_image_data
from benchmarks.jobs.job import JobFamily
from benchmarks.machine import ROOT, describe_machine
from benchmarks.table import Runs, main_seconds, show, summarise, write_csv
from hotloop.checkpoint.files import write_atomically

RESULTS = Path(__file__).parent / "results"


@dataclass
class Measurement:
    """All runs of one table so far.

    Attributes:
        runs: what was measured.
        left_out: why a contestant is not in the table.
        headers: what the processes said of device, threads and data, by variant.
    """

    family: JobFamily
    options: argparse.Namespace
    runs: Runs = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> Path:
        """Measure A B C, A B C, ...; what was measured is on disk after each, whatever comes then.

        Returns:
            The JSON file's path; a table and a chart, made after each repeat, lie beside it.
        """
        path = None
        for repeat in range(self.options.repeats):
            for variant in self.family.variants:
                for contestant in self.options.only:
                    if contestant not in self.left_out:
                        self._measure(variant, contestant, repeat)
                        if any(self.runs.values()):
                            path = write_json(self.result(), self.options.out)
            if path is None:
                raise SystemExit(f"nobody could run {self.family.name}: {self.left_out}")
            write_pictures(self.result(), path)
        if path is None:
            raise SystemExit(f"--repeats {self.options.repeats} measures nothing: pass 1 or more")
        return path

    def result(self) -> dict[str, Any]:
        """Return everything that goes to the file."""
        header = next(iter(self.headers.values()))
        return {
            "job": self.family.name,
            "title": self.family.title,
            "measure": self.family.measure,
            "metric": "loss" if self.family.name == "regression" else "accuracy",
            "data": {variant: values["data"] for variant, values in self.headers.items()},
            "device": header["device"],
            "device_name": header["device_name"],
            "threads": header["threads"],
            "epochs": self.options.epochs,
            "repeats": self.options.repeats,
            "quick": self.options.quick,
            "machine": describe_machine(),
            "left_out": self.left_out,
            "rows": summarise(self.runs),
            "runs": self.runs,
        }

    def _measure(self, variant: str, contestant: str, repeat: int) -> None:
        options = self.options
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            spec = Spec(
                job=self.family.name,
                variant=variant,
                contestant=contestant,
                epochs=options.epochs,
                seed=repeat,
                threads=options.threads,
                quick=options.quick,
                image_data=options.image_data,
                result=str(Path(folder) / "result.json"),
            )
            run = fork_process if options.preload else run_process
            outcome = run(spec, Path(folder), options.limit)
        who = contestant if variant == self.family.name else f"{contestant}, {variant}"
        if "not_available" in outcome:
            # one that never ran is left out; one that ran before has failed, which is news
            self.left_out[contestant] = outcome["not_available"]
            print(f"{who}: left out, {outcome['not_available']}", flush=True)
            return
        keys = ("device", "device_name", "threads", "data")
        self.headers.setdefault(variant, {key: outcome[key] for key in keys})
        outcome = {key: value for key, value in outcome.items() if key not in keys}
        self.runs.setdefault(variant, {}).setdefault(contestant, []).append(outcome)
        metric = f", {outcome['metric']:.4f}" if "metric" in outcome else ""
        print(f"{who}, {repeat + 1}: {main_seconds(outcome):.4g} s{metric}", flush=True)


def run_process(spec: Spec, folder: Path, limit: float) -> dict[str, Any]:
    """Run a spec in a new process in ``folder`` and return its result.

    The result of a process that failed, or took longer than ``limit`` seconds, is
    ``{"not_available": reason}``.
    """
    log = folder / LOG
    with log.open("w") as file:  # not a pipe: workers that outlive the process would hold it
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.child", spec.to_json()],
                cwd=folder,
                env=environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"not_available": f"took longer than {limit:g} s"}
    return read_result(spec, log, done.returncode)


def fork_process(spec: Spec, folder: Path, limit: float) -> dict[str, Any]:
    """As ``run_process``, in a process forked off one that has imported torch and torchmetrics.

    Nothing but these imports was done there: no device, no threads.
    """
    os.environ.update(environment())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.child", "torchmetrics"])
    process = context.Process(target=run_in_folder, args=(spec, str(folder)))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return {"not_available": f"took longer than {limit:g} s"}
    return read_result(spec, folder / LOG, process.exitcode or 0)


def read_result(spec: Spec, log: Path, status: int) -> dict[str, Any]:
    """Return what a process measured, or the last line of its log where it failed."""
    result = Path(spec.result)
    if status or not result.exists():
        last_line = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        return {"not_available": f"failed with exit status {status}: {last_line}"}
    read: dict[str, Any] = json.loads(result.read_text())
    return read


def environment() -> dict[str, str]:
    """Return the environment of a process that can import ``benchmarks`` and ``hotloop``."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if importlib.util.find_spec("hotloop") is None:
        paths.insert(1, str(ROOT / "src"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def write_json(result: dict[str, Any], folder: Path) -> Path:
    """Write a result's JSON file; return its path."""
    name = f"{result['machine']['date']}-{result['job']}-{result['device']}"
    path = folder / f"{name}{'-quick' if result['quick'] else ''}.json"
    text = json.dumps(result, indent=1) + "\n"
    # a machine that goes away leaves the file before or this one
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def write_pictures(result: dict[str, Any], path: Path) -> None:
    """Write a result's table and chart beside its JSON file."""
    write_csv(result["rows"], path.with_suffix(".csv"))
    draw_chart(result, path.with_suffix(".png"))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options, with the job's own values where none were given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="the job's own number when not given")
    parser.add_argument("--only", help="contestants, with commas: " + ",".join(CONTESTANTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one process")
    parser.add_argument("--preload", action="store_true", help="import torch once for all: on Unix")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    family = JOBS[options.job]
    options.epochs = options.epochs or family.epochs
    if options.only:
        options.only = options.only.split(",")
        unknown = set(options.only) - set(CONTESTANTS)
        if unknown:
            parser.error(f"--only: no contestant is called {', '.join(sorted(unknown))}")
    else:
        everybody = [name for name in CONTESTANTS if name not in WHEN_NAMED]
        options.only = [n for n in family.only or everybody if n not in family.without]
    return options


def main() -> None:
    """Run the command line."""
    options = parse_options()
    options.image_data = find_image_data(download=not options.quick)
    path = Measurement(JOBS[options.job], options).run()
    show(json.loads(path.read_text()))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
