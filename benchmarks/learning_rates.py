"""What training reaches with the learning rate that ``find_lr`` suggests, beside other rules.

python -m benchmarks.learning_rates
python -m benchmarks.learning_rates --seeds 3 --out benchmarks/results

Ten jobs (five nets and data sets, Adam and SGD with momentum): a sweep each, then two epochs with
each of 14 rates from 1e-5 to 30, and with what each rule reads off the same curve; the other rules
are written here as their libraries describe them. The figure is the mean training loss of the
second half of the second epoch over the lowest that any rate of the grid reached.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from benchmarks.machine import describe_machine
from hotloop import KerasModel, datasets
from hotloop.errors import DiagnosisError
from hotloop.experiments.image_classifier import make_net
from hotloop.learning_rate import LearningRateCurve

_ROWS, _BATCH_SIZE, _EPOCHS = 6_400, 64, 2
_GRID = [10 ** (half / 2) for half in range(-10, 4)]
_FAILED = 100.0  # stands for NaN in the mean of ratios

Data = Dataset[Any]
OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "Adam": lambda net, lr: torch.optim.Adam(net.parameters(), lr=lr),
    "SGD, momentum 0.9": lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9),
}


class Tokens(nn.Module):
    """A transformer layer over 50 tokens, int64 (batch, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return two logits a row."""
        logits: torch.Tensor = self.head(self.layer(self.embedding(tokens)).mean(1))
        return logits


def _images(net: nn.Module) -> tuple[Data, nn.Module, nn.Module]:
    return Subset(datasets.fashion_mnist()[0], range(_ROWS)), net, nn.CrossEntropyLoss()


def _normalised() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 36, 10)),
    )


def _dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def _regression() -> tuple[Data, nn.Module, nn.Module]:
    inputs = torch.randn(_ROWS, 20)
    labels = inputs @ torch.randn(20, 1) + 0.3 * torch.randn(_ROWS, 1) + 5
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
    return TensorDataset(inputs, labels), net, nn.MSELoss()


def _tokens() -> tuple[Data, nn.Module, nn.Module]:
    tokens = torch.randint(0, 50, (_ROWS, 16))
    labels = ((tokens < 5).sum(1) > 1).long()
    return TensorDataset(tokens, labels), Tokens(), nn.CrossEntropyLoss()


JOBS: dict[str, Callable[[], tuple[Data, nn.Module, nn.Module]]] = {
    "images, dense": lambda: _images(_dense()),
    "images, convolutions": lambda: _images(make_net()),
    "images, batch norm": lambda: _images(_normalised()),
    "regression": _regression,
    "tokens, transformer": _tokens,
}


def steepest(curve: LearningRateCurve) -> float:
    """Return the rate where the smoothed loss falls fastest, as Lightning's ``lr_find`` does."""
    slopes = np.gradient(curve.smoothed)[10:-1]
    return curve.rates[10 + int(np.argmin(slopes))]


def valley(curve: LearningRateCurve) -> float:
    """Return the rate in the longest valley, two thirds down: the default of fastai."""
    losses = curve.smoothed
    longest = [1] * len(losses)
    for later in range(1, len(losses)):
        for earlier in range(later):
            if losses[later] < losses[earlier]:
                longest[later] = max(longest[later], longest[earlier] + 1)
    end = int(np.argmax(longest))
    return curve.rates[end - int(longest[end] / 3) - int(longest[end] / 6)]


RULES: dict[str, Callable[[LearningRateCurve], float]] = {
    "find_lr: a tenth of the lowest's": lambda curve: curve.suggestion,
    "steepest slope": steepest,
    "valley": valley,
}


def train(
    data: Data, net: nn.Module, loss_fn: nn.Module, make_optimizer: Any, lr: float, seed: int
) -> float:
    """Return the mean loss of the last half epoch; infinite where it became NaN."""
    net = copy.deepcopy(net).train()
    optimizer = make_optimizer(net, lr)
    torch.manual_seed(seed)
    loader = DataLoader(data, batch_size=_BATCH_SIZE, shuffle=True)
    losses = []
    for _ in range(_EPOCHS):
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(net(inputs), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return math.inf
    return statistics.fmean(losses[-len(loader) // 2 :])


def measure(job: str, kind: str, seed: int) -> dict[str, Any]:
    """Return the rates and losses of one job and optimizer."""
    torch.manual_seed(seed)
    data, net, loss_fn = JOBS[job]()
    # read once: the grid trains on tensors
    inputs, labels = next(iter(DataLoader(data, batch_size=_ROWS)))
    data = TensorDataset(inputs, labels)
    make_optimizer = OPTIMIZERS[kind]
    model = KerasModel(net, loss_fn, None, make_optimizer(net, 1e-3))
    curve = model.find_lr(DataLoader(data, batch_size=_BATCH_SIZE, shuffle=True))

    def run(lr: float) -> float:
        return train(data, net, loss_fn, make_optimizer, lr, seed)

    grid = {lr: run(lr) for lr in _GRID}
    rules: dict[str, dict[str, float]] = {}
    best = min(grid.values())
    for name, rule in RULES.items():
        try:
            lr = rule(curve)
        except DiagnosisError:
            rules[name] = {"lr": math.nan, "ratio": _FAILED}
            continue
        rules[name] = {"lr": lr, "ratio": min(run(lr) / best, _FAILED)}
    return {"job": job, "optimizer": kind, "seed": seed, "grid": grid, "best": best,
            "best_lr": min(grid, key=lambda lr: grid[lr]), "rules": rules}  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: the ratios of each rule by job, then over all jobs."""
    lines = ["| training loss over the grid's lowest | " + " | ".join(RULES) + " |"]
    lines.append("|---|" + "--:|" * len(RULES))
    for job in dict.fromkeys((row["job"], row["optimizer"]) for row in found):
        rows = [row for row in found if (row["job"], row["optimizer"]) == job]
        lines.append(f"| {', '.join(job)} | " + " | ".join(_summaries(rows)) + " |")
    lines.append("| **all: geometric mean (range)** | " + " | ".join(_summaries(found)) + " |")
    return "\n".join(lines)


def _summaries(rows: Sequence[dict[str, Any]]) -> list[str]:
    ratios = [[row["rules"][name]["ratio"] for row in rows] for name in RULES]
    return [
        f"{statistics.geometric_mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        for values in ratios
    ]


def main() -> None:
    """Measure all, print the table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="a job's name")
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.seeds):
        for job in [arguments.only] if arguments.only else JOBS:
            for kind in OPTIMIZERS:
                found.append(measure(job, kind, seed))
                print(f"{job}, {kind}, seed {seed}: done", flush=True)
    print(table(found))
    if arguments.out is not None:
        machine = describe_machine()
        path = arguments.out / f"{machine['date']}-learning-rates.json"
        path.write_text(json.dumps({"machine": machine, "results": found}, indent=1))
        print(path)


if __name__ == "__main__":
    main()
