"""Planted bottlenecks: what the doctor names, what it predicts, and what the change then gives.

    python -m benchmarks.doctor --out benchmarks/results

One table of planted cases, with the error of each prediction; one of ``tune="auto"`` beside worker
counts set by hand; what the always-on accounting costs; written as JSON, CSV and markdown. About
7 minutes. ``--only "slow decode,tiny batches"`` runs some cases, ``--only tuned`` and ``--only
overhead`` the other parts, and writes nothing; ``--quick`` only shows that it runs.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe_machine
from benchmarks.planted import Case, Decoded, Waited, make_cases, reading
from hotloop import KerasModel
from hotloop.callbacks.progress import Progress
from hotloop.data.adapt import BatchSource
from hotloop.fitting.run import FitRun
from hotloop.fitting.settings import FitSettings
from hotloop.timing.clock import NoClock, StepClock

EPOCHS = 2
FIT: dict[str, Any] = {
    "epochs": EPOCHS, "plot": False, "quiet": True, "cpu": True, "resident_budget": 0
}  # fmt: skip


def epoch_seconds(build: Any, argument: str | None, whole: bool = False) -> float:
    """Return the seconds of a second epoch, callbacks included; of the mean one of a whole fit."""
    model, loader, callbacks = build(argument)
    every: dict[str, dict[str, Any]] = {'fit(mixed_precision="bf16")': {"mixed_precision": "bf16"},
               "fit(resident_budget=0.3)": {"resident_budget": 0.3},
               "fit(compile=True)": {"compile": True}}  # fmt: skip
    options = every.get(argument or "", {})
    model.fit(loader, callbacks=callbacks, **(FIT | options))
    stages = model.time_report().stages
    if whole:
        return float(sum(stage.total for stage in stages)) / EPOCHS
    return float(sum(stage.total for stage in stages if stage.epoch == EPOCHS))


def run_case(name: str, case: Case, seconds: float, repeats: int) -> dict[str, Any]:
    """Diagnose a planted case; apply what was advised; return a row."""
    model, loader, callbacks = case.build(None)
    if "compile" in case.changes:
        seconds *= 2.5  # building a graph takes ten
    found = model.diagnose(
        loader, seconds=seconds, callbacks=callbacks, cpu=True, epochs=2, resident_budget=0
    )
    kinds = [mistake.kind for mistake in found.mistakes]
    change = next((c for c in found.changes if c.name in case.changes), None)
    argument = change.argument if change else None
    if change is None and case.expected in kinds:
        argument = "the loss left where it is"
    before: list[float] = []
    after: list[float] = []
    whole = change is not None and change.name == "resident"  # reads before the first epoch
    for repeat in range(repeats if argument else 0):  # in turn: a busy minute hits both
        for applied in (None, argument) if repeat % 2 else (argument, None):
            (after if applied else before).append(epoch_seconds(case.build, applied, whole))
    gains = sorted(one / other for one, other in zip(before, after, strict=True))
    row: dict[str, Any] = {
        "case": name,
        "expected": case.expected,
        "named": found.bottleneck if case.expected != "sync" else ", ".join(kinds) or "nothing",
        "right": found.bottleneck == case.expected or case.expected in kinds,
        "argument": argument or "nothing here is faster",
        "how": change.how if change else "",
        "predicted_gain": change.gain if change else None,
        "measured_gain": statistics.median(gains) if gains else None,
        "measured_range": f"{gains[0]:.3g} to {gains[-1]:.3g}" if gains else "",
        "error": None,
        "within_20_percent": "none predicted: on a CPU nothing waits" if argument else "no change",
        "epoch_seconds_predicted": found.total_seconds,
        "epoch_seconds_before": statistics.median(before) if before else None,
        "after_predicted": change.seconds_after if change else None,
        "epoch_seconds_after": statistics.median(after) if after else None,
    }
    if change is not None and gains:
        row["error"] = change.gain / row["measured_gain"] - 1
        row["within_20_percent"] = "yes" if abs(row["error"]) <= 0.2 else "no"
    return row


def run_tuned(repeats: int) -> list[dict[str, Any]]:
    """Return whole fits by hand-set workers and by tune="auto", in turn.

    Settings that were far behind in the first turn are not run again.
    """
    datasets = {"decode": Decoded(1024), "wait": Waited(1024)}
    rows = []
    for name, dataset in datasets.items():
        build = reading(dataset)
        seconds: dict[str, list[float]] = {}
        settings = ["0", "1", "2", "4", "8", "auto"]
        for _ in range(repeats):
            for setting in settings:
                argument = None if setting in ("0", "auto") else f"num_workers={setting})"
                model, loader, _ = build(argument)
                started = time.perf_counter()
                model.fit(loader, **(FIT | {"epochs": 3, "quiet": False}),
                          tune="auto" if setting == "auto" else None)  # fmt: skip
                seconds.setdefault(setting, []).append(time.perf_counter() - started)
            best = min(statistics.median(values) for values in seconds.values())
            settings = [s for s in settings if seconds[s][0] < 1.5 * best or s == "auto"]
        by_hand = min(statistics.median(v) for k, v in seconds.items() if k != "auto")
        rows += [
            {
                "data": name,
                "workers": setting,
                "turns": len(values),
                "fit_seconds": statistics.median(values),
                "of_best_by_hand": by_hand / statistics.median(values),
            }
            for setting, values in seconds.items()
        ]
    return rows


class Blocks:
    """Training steps of one model in blocks, with one clock or another."""

    def __init__(self, num_steps: int) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                            nn.Linear(64, 2))  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        batches = [(torch.randn(64, 20), torch.randint(2, (64,)))] * num_steps
        self.source = BatchSource(batches, "train_data", torch.device("cpu"))
        self.run = FitRun(model, FitSettings(cpu=True), (self.source, None), Progress())
        self.run.start_speedups()

    def time(self, clock: StepClock) -> tuple[float, float]:
        """Return the seconds of a block, of the wall and of the processor."""
        self.run.clock = clock
        started, worked = time.perf_counter(), time.process_time()
        self.run._run_stage("train", self.source, epoch=1)
        return time.perf_counter() - started, time.process_time() - worked


def run_overhead(num_pairs: int, num_steps: int = 400) -> dict[str, Any]:
    """Compare small steps with the accounting and without, in blocks that take turns.

    One model, blocks of a tenth of a second: what else the machine does hits both of a pair
    alike, and the median over pairs leaves out those where it did not. The processor's time beside
    the wall clock's does not count what others took of it.
    """
    blocks, on, off = Blocks(num_steps), StepClock(torch.device("cpu")), NoClock()
    for clock in (on, off) * 5:
        blocks.time(clock)
    pairs = []
    for number in range(num_pairs):
        first, second = (on, off) if number % 2 else (off, on)
        times = {clock: blocks.time(clock) for clock in (first, second)}
        pairs.append((times[on], times[off]))
    step_seconds = statistics.median(without[0] for _, without in pairs) / num_steps
    result: dict[str, Any] = {
        "steps_of_a_block": num_steps,
        "pairs": num_pairs,
        "microseconds_on": statistics.median(with_it[0] for with_it, _ in pairs) / num_steps * 1e6,
        "microseconds_off": step_seconds * 1e6,
        "calls_microseconds": _calls_cost(num_steps),
    }
    for which, name in enumerate(("wall", "processor")):
        ratios = [with_it[which] / without[which] for with_it, without in pairs]
        result[f"{name}_quartiles"] = statistics.quantiles(ratios, n=4)
    return result


class SelfTimed(StepClock):
    """A clock that adds up what its calls take where they are made: behind a step's operators."""

    spent = 0.0

    def begin_wait(self) -> None:
        started = time.perf_counter()
        super().begin_wait()
        self.spent += time.perf_counter() - started

    def end_wait(self, came: bool) -> None:
        started = time.perf_counter()
        super().end_wait(came)
        self.spent += time.perf_counter() - started

    def lap(self, phase: str) -> None:
        started = time.perf_counter()
        super().lap(phase)
        self.spent += time.perf_counter() - started


class SelfTimedNone(SelfTimed, NoClock):
    """Adds up what looking at the clock around calls takes by itself."""


def _calls_cost(num_steps: int, num_blocks: int = 30) -> float:
    """Return microseconds that the clock's calls take in a step, the median of blocks."""
    blocks = Blocks(num_steps)
    taken: dict[Any, list[float]] = {}
    for clock in (SelfTimed(), SelfTimedNone()) * num_blocks:
        clock.spent = 0.0
        blocks.time(clock)
        taken.setdefault(type(clock), []).append(clock.spent)
    calls, looking = (statistics.median(values[3:]) for values in taken.values())
    return (calls - looking) / num_steps * 1e6


def write(result: dict[str, Any], folder: Path, name: str) -> None:
    """Write JSON, CSV of the cases and markdown of all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(result["cases"][0]))
        writer.writeheader()
        writer.writerows(result["cases"])
    (folder / f"{name}.md").write_text(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as markdown."""
    machine, overhead = result["machine"], result["overhead"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['versions']['torch']}, "
        f"{machine['date']}, commit {machine['commit']}; load average {result['load_before']:.1f} "
        f"before and {result['load_after']:.1f} after; {result['repeats']} repeats.",
        "",
        *_table(result["cases"]),
        "",
        "error: predicted gain over measured gain, less 1; gains are medians of pairs in turn.",
        "",
        *_table(result["tuned"]),
        "",
        f"A step of {overhead['microseconds_off']:.0f} us without accounting takes "
        f"{overhead['microseconds_on']:.0f} us with it, over {overhead['pairs']} pairs of blocks "
        f"of {overhead['steps_of_a_block']} steps in turn; first quartile, median and third "
        f"quartile of their ratios: {_three(overhead['wall_quartiles'])} by the clock, "
        f"{_three(overhead['processor_quartiles'])} of the processor's time. The clock's calls "
        f"take {overhead['calls_microseconds']:.2f} us a step, "
        f"{overhead['calls_microseconds'] / overhead['microseconds_off']:.2%} of it.",
    ]
    return "\n".join(lines) + "\n"


def _three(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)

    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(cell(row[key]) for key in head) + " |" for row in rows]


def main() -> None:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="for each diagnosis")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", default="", help="names of cases or parts, with commas between")
    parser.add_argument("--quick", action="store_true", help="one short repeat")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    seconds = 5.0 if arguments.quick else arguments.seconds
    only = [name for name in arguments.only.split(",") if name]
    torch.set_num_threads(1)
    out = arguments.out.resolve()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "load_before": os.getloadavg()[0],
        "repeats": repeats,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # checkpoints
        for name, case in make_cases(Path(folder)).items():
            if only and name not in only:
                continue
            row = run_case(name, case, seconds, repeats)
            print(row, flush=True)
            result["cases"].append(row)
        if not only or "tuned" in only:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                result["tuned"] = run_tuned(repeats)
        if not only or "overhead" in only:
            result["overhead"] = run_overhead(5 if arguments.quick else 100)
        result["load_after"] = os.getloadavg()[0]
    if only:
        print(json.dumps(result, indent=2))
        return
    write(result, out, f"{result['machine']['date']}-doctor{'-quick' * arguments.quick}")
    print(markdown(result))


if __name__ == "__main__":
    main()
