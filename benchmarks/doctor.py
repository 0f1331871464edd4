"""Planted bottlenecks: what the doctor names, what it predicts, and what the change then gives.

    python -m benchmarks.doctor --seconds 20 --out benchmarks/results

One table of planted cases, one of ``tune="auto"`` beside worker counts set by hand, one of what the
always-on accounting costs; written as JSON, CSV and markdown. ``--quick`` only shows that it runs.
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
from hotloop.fitting.run import FitRun
from hotloop.timing.clock import NoClock

WIDTH = 256
FIT = {"epochs": 2, "plot": False, "quiet": True, "cpu": True, "resident_budget": 0}
_QUIET = {"plot": False, "quiet": True, "cpu": True}


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
        change: the name of the change whose prediction is looked at.
        build: returns model, loader and callbacks; given the change's argument, with it applied.
    """

    expected: str
    change: str
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
    del argument
    return make_model(width=60_000), DataLoader(Rows(), 64), []


def make_cases(folder: Path) -> dict[str, Case]:
    return {
        "slow decode": Case("data: decode", "workers", reading(Decoded(2048))),
        "slow collate": Case("data: collate", "workers", reading(Rows(1024), slow_collate)),
        "disk behind a throttle": Case(
            "data: storage", "workers", reading(OnDisk(folder / "f", 2048))
        ),
        "tiny batches": Case("compute: small batches", "batch_size", tiny),
        ".item() in the step": Case("sync", "sync", reads_back),
        "oversized metric": Case("metrics", "metrics", oversized),
        "slow callback": Case("callbacks", "callbacks", slow_callback),
        "compute-bound net": Case("compute: arithmetic", "none", heavy),
    }


def epoch_seconds(build: Any, argument: str | None, **options: Any) -> float:
    """Return the seconds of a second epoch, callbacks included."""
    model, loader, callbacks = build(argument)
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
    change = next((c for c in found.changes if c.name == case.change), None)
    argument = change.argument if change else (case.change if case.change in kinds else None)
    before, after = [], []
    for _ in range(repeats if argument else 0):  # in turn: a busy minute hits both
        before.append(epoch_seconds(case.build, None))
        after.append(epoch_seconds(case.build, argument))
    gains = [one / other for one, other in zip(before, after, strict=True)]
    return {
        "case": name,
        "expected": case.expected,
        "named": found.bottleneck if case.expected != "sync" else ", ".join(kinds) or "nothing",
        "right": found.bottleneck == case.expected or case.expected in kinds,
        "argument": argument or "",
        "predicted_gain": change.gain if change else None,
        "measured_gain": statistics.median(gains) if gains else None,
        "epoch_seconds_predicted": found.total_seconds,
        "epoch_seconds_before": statistics.median(before) if before else None,
        "epoch_seconds_after": statistics.median(after) if after else None,
    }


def run_tuned(repeats: int) -> list[dict[str, Any]]:
    """Return whole fits by hand-set workers and by tune="auto", in turn."""
    datasets = {"decode": Decoded(1024), "wait": Waited(1024)}
    rows = []
    for name, dataset in datasets.items():
        build, seconds = reading(dataset), {}
        for _ in range(repeats):
            for setting in ("0", "1", "2", "4", "8", "auto"):
                argument = None if setting in ("0", "auto") else f"num_workers={setting})"
                model, loader, _ = build(argument)
                started = time.perf_counter()
                model.fit(loader, **(FIT | {"epochs": 3, "quiet": False}),
                          tune="auto" if setting == "auto" else None)  # fmt: skip
                seconds.setdefault(setting, []).append(time.perf_counter() - started)
        by_hand = min(statistics.median(v) for k, v in seconds.items() if k != "auto")
        rows += [
            {
                "data": name,
                "workers": setting,
                "fit_seconds": statistics.median(values),
                "to_best_by_hand": statistics.median(values) / by_hand,
            }
            for setting, values in seconds.items()
        ]
    return rows


def run_overhead(repeats: int, num_steps: int) -> dict[str, Any]:
    """Return microseconds of a small step with the accounting and without, in turn."""
    inputs, labels = torch.randn(64 * num_steps, 20), torch.randint(2, (64 * num_steps,))
    make_clock = FitRun.make_clock
    ratios, on, off = [], [], []
    for repeat in range(repeats):
        pair = {}
        order = ("on", "off") if repeat % 2 else ("off", "on")
        for setting in order:
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                                nn.Linear(64, 2))  # fmt: skip
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
            model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
            FitRun.make_clock = (  # type: ignore[method-assign]
                make_clock if setting == "on" else lambda _: NoClock()
            )
            ends = Ends()
            model.fit((inputs, labels), batch_size=64, epochs=3, callbacks=[ends], **_QUIET)
            pair[setting] = min(ends.seconds) / num_steps * 1e6
        on.append(pair["on"])
        off.append(pair["off"])
        ratios.append(pair["on"] / pair["off"])
    FitRun.make_clock = make_clock  # type: ignore[method-assign]
    return {
        "steps": num_steps,
        "repeats": repeats,
        "microseconds_on": statistics.median(on),
        "microseconds_off": statistics.median(off),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "calls_microseconds": _calls_cost(),
    }


class Ends:
    """Notes what epochs after the first took."""

    def __init__(self) -> None:
        self.last = 0.0
        self.seconds: list[float] = []

    def on_train_epoch_end(self, model: Any) -> None:
        del model
        if self.last:
            self.seconds.append(time.perf_counter() - self.last)
        self.last = time.perf_counter()


def _calls_cost(count: int = 100_000) -> float:
    """Return microseconds of the clock's calls of a 200 us step, alone."""
    from hotloop.timing.clock import StepClock

    clock = StepClock()
    clock.begin_stage("train", 1)
    clock._mean, clock._num_sampled = 2e-4, 1_000_000  # as after many steps of 200 us
    started = time.perf_counter()
    for _ in range(count):
        clock.begin_wait()
        clock.end_wait(True)
        if clock.detailed:
            for phase in ("transform", "forward", "backward", "optimizer", "metrics"):
                clock.lap(phase)
        clock._mean = 2e-4
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
        *_table(result["tuned"]),
        "",
        f"A step of {overhead['microseconds_off']:.0f} us without accounting takes "
        f"{overhead['microseconds_on']:.0f} us with it: {overhead['ratio_median']:.3f} times, "
        f"{overhead['ratio_range'][0]:.3f} to {overhead['ratio_range'][1]:.3f}; the calls alone "
        f"take {overhead['calls_microseconds']:.2f} us.",
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
    parser.add_argument("--seconds", type=float, default=20.0, help="for each diagnosis")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", default="", help="names of cases, with commas between")
    parser.add_argument("--quick", action="store_true", help="one short repeat")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    seconds = 5.0 if arguments.quick else arguments.seconds
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
            if arguments.only and name not in arguments.only.split(","):
                continue
            row = run_case(name, case, seconds, repeats)
            print(row, flush=True)
            result["cases"].append(row)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            result["tuned"] = run_tuned(repeats)
            steps, pairs = (200, 1) if arguments.quick else (3000, 9)
            result["overhead"] = run_overhead(pairs, steps)
        result["load_after"] = os.getloadavg()[0]
    write(result, out, "doctor-quick" if arguments.quick else "doctor")
    print(markdown(result))


if __name__ == "__main__":
    main()
