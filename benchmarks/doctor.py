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
import dataclasses
import io
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import describe_machine
from hotloop import KerasModel
from hotloop.callbacks.progress import Progress
from hotloop.data.adapt import BatchSource
from hotloop.fitting.run import FitRun
from hotloop.fitting.settings import FitSettings
from hotloop.timing.clock import NoClock, StepClock

WIDTH = 256
FIT = {"epochs": 2, "plot": False, "quiet": True, "cpu": True, "resident_budget": 0}


class Rows(Dataset):
    """Rows that take no time to read."""

    def __init__(self, length: int = 512) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((WIDTH,), index / self.length), index % 2


class Decoded(Rows):
    """Each sample is unpacked, as a compressed image is: work for a processor."""

    def __init__(self, length: int = 512) -> None:
        super().__init__(length)
        self.packed = zlib.compress(bytes(range(256)) * 4096, 9)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        zlib.crc32(zlib.decompress(self.packed))
        return super().__getitem__(index)


class Waited(Rows):
    """Each sample waits 4 ms: what any number of workers can do at a time."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.004)
        return super().__getitem__(index)


class Throttled(io.FileIO):
    """A file that gives 100 MiB a second."""

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        data = super().read(size) or b""
        time.sleep(len(data) / (100 * 2**20))
        return data


class OnDisk(Rows):
    """Each sample reads half a MiB of a file behind a throttle."""

    def __init__(self, path: Path, length: int = 512) -> None:
        super().__init__(length)
        self.path = path
        path.write_bytes(bytes(2**19))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Throttled(self.path) as file:
            file.read()
        return super().__getitem__(index)


def slow_collate(samples: list[Any]) -> Any:
    time.sleep(0.08)
    return torch.utils.data.default_collate(samples)


class ReadsBack(KerasModel):
    """Reads each sample's loss back."""

    def step(self, batch: Any) -> Any:
        inputs, labels = batch
        preds = self.net(inputs)
        losses = nn.functional.cross_entropy(preds, labels, reduction="none")
        self.largest = max(loss.item() for loss in losses)
        return losses.mean(), preds, labels


class Kept(KerasModel):
    """The same step, with the largest loss left on the device."""

    def step(self, batch: Any) -> Any:
        inputs, labels = batch
        preds = self.net(inputs)
        losses = nn.functional.cross_entropy(preds, labels, reduction="none")
        return {"loss": losses.mean(), "preds": preds, "labels": labels, "largest": losses.max()}


class Oversized(nn.Module):
    """Sorts a million numbers for each batch."""

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> None:
        del preds, labels
        torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)).sort()

    def compute(self) -> float:
        return 0.0

    def reset(self) -> None:
        pass


class Slow:
    """A callback of a second and a half."""

    def on_train_epoch_end(self, model: Any) -> None:
        del model
        time.sleep(1.5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A planted bottleneck.

    Attributes:
        expected: the bottleneck's name, or the kind of the mistake.
        changes: the names of the changes whose prediction is looked at, the first that is advised.
        build: returns model, loader and callbacks; given the change's argument, with it applied.
    """

    expected: str
    changes: tuple[str, ...]
    build: Callable[[str | None], tuple[KerasModel, DataLoader[Any], list[Any]]]


def make_model(kind: type[KerasModel] = KerasModel, metrics: Any = None, width: int = 64) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, 2))
    return kind(net, nn.CrossEntropyLoss(), metrics, torch.optim.Adam(net.parameters(), lr=1e-3))


def reading(dataset: Rows, collate: Any = None) -> Any:
    """Return the builder of a case of slow data; its change is a number of workers."""

    def build(argument: str | None) -> Any:
        workers = int(argument.partition("num_workers=")[2].strip(")")) if argument else 0
        loader = DataLoader(dataset, 16, shuffle=True, collate_fn=collate, num_workers=workers)
        return make_model(), loader, []

    return build


def tiny(argument: str | None) -> Any:
    size = int(argument.partition("batch_size=")[2].strip(")")) if argument else 4
    return make_model(), DataLoader(Rows(8192), size, shuffle=True), []


def reads_back(argument: str | None) -> Any:
    return make_model(Kept if argument else ReadsBack), DataLoader(Rows(2048), 64), []


def oversized(argument: str | None) -> Any:
    metrics = None if argument else {"big": Oversized()}
    return make_model(metrics=metrics), DataLoader(Rows(), 32), []


def slow_callback(argument: str | None) -> Any:
    return make_model(), DataLoader(Rows(), 32), [] if argument else [Slow()]


def heavy(argument: str | None) -> Any:
    del argument  # an argument of fit
    return make_model(width=60_000), DataLoader(Rows(), 64), []


def make_cases(folder: Path) -> dict[str, Case]:
    workers = ("workers",)
    return {
        "slow decode": Case("data: decode", workers, reading(Decoded(2048))),
        "slow collate": Case("data: collate", workers, reading(Rows(1024), slow_collate)),
        "disk behind a throttle": Case(
            "data: storage", workers, reading(OnDisk(folder / "f", 1024))
        ),
        "tiny batches": Case("compute: small batches", ("batch_size",), tiny),
        ".item() in the step": Case("sync", ("sync",), reads_back),
        "oversized metric": Case("metrics", ("metrics",), oversized),
        "slow callback": Case("callbacks", ("callbacks",), slow_callback),
        "compute-bound net": Case("compute: arithmetic", ("bf16", "compile"), heavy),
    }


def epoch_seconds(build: Any, argument: str | None) -> float:
    """Return the seconds of a second epoch, callbacks included."""
    model, loader, callbacks = build(argument)
    options = {'fit(mixed_precision="bf16")': {"mixed_precision": "bf16"},
               "fit(compile=True)": {"compile": True}}.get(argument or "", {})  # fmt: skip
    model.fit(loader, callbacks=callbacks, **(FIT | options))
    last = [stage for stage in model.time_report().stages if stage.epoch == FIT["epochs"]]
    return sum(stage.total for stage in last)


def run_case(name: str, case: Case, seconds: float, repeats: int) -> dict[str, Any]:
    """Diagnose a planted case; apply what was advised; return a row."""
    model, loader, callbacks = case.build(None)
    found = model.diagnose(
        loader, seconds=seconds, callbacks=callbacks, cpu=True, epochs=2, resident_budget=0
    )
    kinds = [mistake.kind for mistake in found.mistakes]
    change = next((c for c in found.changes if c.name in case.changes), None)
    argument = change.argument if change else None
    if change is None and case.expected in kinds:
        argument = "the loss left where it is"
    before, after = [], []
    for repeat in range(repeats if argument else 0):  # in turn: a busy minute hits both
        for applied in (None, argument) if repeat % 2 else (argument, None):
            (after if applied else before).append(epoch_seconds(case.build, applied))
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
        build, seconds = reading(dataset), {}
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
    """Training steps of one model in blocks, with the accounting or without."""

    def __init__(self, clock: StepClock, num_steps: int) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                            nn.Linear(64, 2))  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        batches = [(torch.randn(64, 20), torch.randint(2, (64,)))] * num_steps
        self.source = BatchSource(batches, "train_data", torch.device("cpu"))
        self.run = FitRun(model, FitSettings(cpu=True), (self.source, None), Progress())
        if self.run.fused is not None:
            self.run.fused.apply()
        self.run.clock = clock

    def time(self) -> float:
        """Return the seconds of a block."""
        started = time.perf_counter()
        self.run._run_stage("train", self.source, epoch=1)
        return time.perf_counter() - started


def run_overhead(num_pairs: int, num_steps: int = 100) -> dict[str, Any]:
    """Compare small steps with the accounting and without, in blocks that take turns.

    One process, blocks of some hundredths of a second: what else the machine does hits both of a
    pair alike, and the median over pairs leaves out those where it did not.
    """
    on, off = Blocks(StepClock(torch.device("cpu")), num_steps), Blocks(NoClock(), num_steps)
    for blocks in (on, off):
        for _ in range(5):
            blocks.time()
    pairs = []
    for number in range(num_pairs):
        first, second = (on, off) if number % 2 else (off, on)
        times = {first: first.time(), second: second.time()}
        pairs.append((times[on], times[off]))
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return {
        "steps_of_a_block": num_steps,
        "pairs": num_pairs,
        "microseconds_on": statistics.median(a for a, _ in pairs) / num_steps * 1e6,
        "microseconds_off": statistics.median(b for _, b in pairs) / num_steps * 1e6,
        "ratio_median": middle,
        "ratio_quartiles": [low, high],
        "calls_microseconds": _calls_cost(statistics.median(b for _, b in pairs) / num_steps),
    }


def _calls_cost(step_seconds: float, count: int = 100_000) -> float:
    """Return microseconds of the clock's calls in a step of this length, alone."""
    clock = StepClock()
    clock.begin_stage("train", 1)
    clock._mean, clock._num_sampled = step_seconds, 1_000_000  # as after many such steps
    started = time.perf_counter()
    for _ in range(count):
        clock.begin_wait()
        clock.end_wait(True)
        if clock.detailed:
            for phase in ("transform", "forward", "backward", "optimizer", "metrics"):
                clock.lap(phase)
        clock._mean = step_seconds
    return (time.perf_counter() - started) / count * 1e6


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
        f"{overhead['microseconds_on']:.0f} us with it: {overhead['ratio_median']:.3f} times, "
        f"quartiles {overhead['ratio_quartiles'][0]:.3f} to "
        f"{overhead['ratio_quartiles'][1]:.3f} over {overhead['pairs']} pairs of blocks in turn; "
        f"the clock's calls alone take {overhead['calls_microseconds']:.2f} us a step, "
        f"{overhead['calls_microseconds'] / overhead['microseconds_off']:.2%} of it.",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)

    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(cell(row[key]) for key in head) + " |" for row in rows]


def main() -> None:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="for each diagnosis")
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
            result["overhead"] = run_overhead(20 if arguments.quick else 400)
        result["load_after"] = os.getloadavg()[0]
    if only:
        print(json.dumps(result, indent=2))
        return
    write(result, out, "doctor-quick" if arguments.quick else "doctor")
    print(markdown(result))


if __name__ == "__main__":
    main()
