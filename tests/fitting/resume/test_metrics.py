"""Metrics of one's own that count in containers go on where they were."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_mlp
from stopped import STEPS, Loss, adam, fit
from torch import nn

from hotloop import KerasModel


class Right(nn.Module):
    """Counts right answers in a container, which a subclass makes, fills and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.counts: Any = self.make()

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> None:
        self.add(int((preds.argmax(1) == labels).sum()), len(labels))

    def compute(self) -> torch.Tensor:
        right, count = self.read()
        return torch.tensor(right / max(count, 1))


class InDict(Right):
    def make(self) -> Any:
        return {"right": 0, "count": 0}

    def add(self, right: int, count: int) -> None:
        self.counts["right"] += right
        self.counts["count"] += count

    def read(self) -> tuple[int, int]:
        return self.counts["right"], self.counts["count"]


class InPlace(InDict):
    """Sets the dict that it has to zero, as it does with all it has."""

    def reset(self) -> None:
        if not hasattr(self, "counts"):
            self.counts = {"right": 0, "count": 0}
            self.array, self.more = np.zeros(2), {"pairs": [deque([0])], "sums": Counter()}
        self.counts.update(right=0, count=0)
        self.array[:] = 0
        self.more["pairs"][0][0] = 0
        self.more["sums"].clear()

    def add(self, right: int, count: int) -> None:
        super().add(right, count)
        self.array += count
        self.more["pairs"][0][0] += right
        self.more["sums"]["right"] += right

    def read(self) -> tuple[int, int]:
        return self.more["pairs"][0][0] + self.more["sums"]["right"], int(self.array.sum())


class InDeque(Right):
    def make(self) -> Any:
        return deque(maxlen=5)

    def add(self, right: int, count: int) -> None:
        self.counts.append((right, count))

    def read(self) -> tuple[int, int]:
        return sum(right for right, _ in self.counts), sum(count for _, count in self.counts)


class InDefaultDict(Right):
    """Counts under names that are new to it in each batch, in dicts that make themselves."""

    def make(self) -> Any:
        return defaultdict(lambda: defaultdict(int))

    def add(self, right: int, count: int) -> None:
        self.counts["right"][random.randrange(10**6)] += right
        self.counts[random.randrange(10**6)]["count"] += count

    def read(self) -> tuple[int, int]:
        right = sum(self.counts["right"].values())
        return right, sum(counts["count"] for counts in self.counts.values())


@pytest.mark.parametrize("metric", [InDict, InPlace, InDeque, InDefaultDict])
@pytest.mark.parametrize(
    "stop_at", [STEPS + 2 + 7, 2 * (STEPS + 2) + STEPS + 1], ids=["step", "validation"]
)
def test_it_goes_on(tmp_path: Path, small, metric: Callable[[], nn.Module], stop_at: int):
    def make() -> KerasModel:
        random.seed(0)
        net = make_mlp()
        return KerasModel(net, Loss(), {"right": metric()}, adam(net))

    options = {"monitor": "train_right", "mode": "max"}
    whole = fit(make, tmp_path / "whole", small, **options)
    assert whole["best"] == 3  # whose training the stop in validation comes after
    assert fit(make, tmp_path / "cut", small, stop_at, **options) is None
    assert fit(make, tmp_path / "cut", small, **options) == whole
