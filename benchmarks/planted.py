"""Trainings with a planted bottleneck each, for ``benchmarks.doctor``."""

from __future__ import annotations

import dataclasses
import io
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hotloop import KerasModel

WIDTH = 256


class Rows(Dataset[Any]):
    """Rows that take no time to read."""

    def __init__(self, length: int = 512) -> None:
        self.length = length
        self.table = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.table[index % 64], index % 2


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
    """Sorts half a million numbers for each batch."""

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> None:
        del preds, labels
        torch.rand(500_000, generator=torch.Generator().manual_seed(0)).sort()

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


def make_model(
    kind: type[KerasModel] = KerasModel, metrics: Any = None, net: nn.Module | None = None
) -> Any:
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 2))
    return kind(net, nn.CrossEntropyLoss(), metrics, torch.optim.Adam(net.parameters(), lr=1e-3))


def reading(dataset: Rows, collate: Any = None) -> Any:
    """Return the builder of a case of slow data; its change is a number of workers."""

    def build(argument: str | None) -> Any:
        workers = int(argument.partition("num_workers=")[2].strip(")")) if argument else 0
        loader = DataLoader(dataset, 16, shuffle=True, collate_fn=collate, num_workers=workers)
        return make_model(), loader, []

    return build


def decoded_anew(argument: str | None) -> Any:
    """Return slow data that is read anew in each epoch; what is applied is an argument of fit."""
    del argument
    return reading(Decoded(1024))(None)


def tiny(argument: str | None) -> Any:
    size = int(argument.partition("batch_size=")[2].strip(")")) if argument else 4
    return make_model(), DataLoader(Rows(8192), size, shuffle=True), []


def reads_back(argument: str | None) -> Any:
    return make_model(Kept if argument else ReadsBack), DataLoader(Rows(2048), 64), []


def oversized(argument: str | None) -> Any:
    metrics = None if argument else {"big": Oversized()}
    return make_model(metrics=metrics), DataLoader(Rows(1024), 32), []


def slow_callback(argument: str | None) -> Any:
    return make_model(), DataLoader(Rows(4096), 32), [] if argument else [Slow()]


def heavy(argument: str | None) -> Any:
    """Return a net with much arithmetic for few weights; what is applied is an argument of fit."""
    del argument
    net = nn.Sequential(nn.Unflatten(1, (1, 16, 16)), nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(),
                        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(64, 2))  # fmt: skip
    return make_model(net=net), DataLoader(Rows(), 64), []


def make_cases(folder: Path) -> dict[str, Case]:
    workers = ("workers",)
    return {
        "slow decode": Case("data: decode", workers, reading(Decoded(2048))),
        "decoded anew": Case("data: decode", ("resident",), decoded_anew),
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
