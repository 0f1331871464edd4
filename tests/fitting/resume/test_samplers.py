"""Samplers that draw as they go, or keep a state: the same order after going on, or it is told."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.child import in_child
from faults.jobs import fingerprint, make_mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, TensorDataset

import hotloop.data.order
from hotloop import KerasModel
from hotloop.data.position import Position
from hotloop.errors import RunInterrupted, SampleError

ROWS, BATCH = 120, 10
STEPS = ROWS // BATCH  # an epoch
TOLD = "does not give the order again"


class Own(Sampler):
    """Of all rows once."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return ROWS


class Buckets(Own):
    """Draws the order of a bucket when it comes to it; buckets and batches do not coincide."""

    def __iter__(self) -> Any:
        for start in range(0, ROWS, 15):
            yield from (start + torch.randperm(15)).tolist()


class PythonBuckets(Own):
    def __iter__(self) -> Any:
        for start in range(0, ROWS, 15):
            bucket = list(range(start, start + 15))
            random.shuffle(bucket)
            yield from bucket


class NumpyBuckets(Own):
    def __iter__(self) -> Any:
        for start in range(0, ROWS, 15):
            yield from (start + np.random.permutation(15)).tolist()


class OwnGeneratorBuckets(Own):
    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __iter__(self) -> Any:
        for start in range(0, ROWS, 15):
            yield from (start + self.generator.permutation(15)).tolist()


class BatchSizes(Own):
    """A batch sampler that draws the size of each batch."""

    def __iter__(self) -> Any:
        rows, begin = torch.randperm(ROWS).tolist(), 0
        while begin < ROWS:
            size = random.randint(6, 14)
            yield rows[begin : begin + size]
            begin += size

    def __len__(self) -> int:
        return STEPS


class CountsEpochs(Own):
    """Orders the rows by the number of the epoch, which it counts itself."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Any:
        self.epoch += 1
        generator = torch.Generator().manual_seed(self.epoch)
        yield from torch.randperm(ROWS, generator=generator).tolist()


class CountsHidden(Own):
    """The same, where nobody can look."""

    def __init__(self) -> None:
        self.epochs = itertools.count(1)

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(next(self.epochs))
        yield from torch.randperm(ROWS, generator=generator).tolist()


class Noisy(Dataset):
    """Rows with noise from every global generator, and from one that it may share."""

    def __init__(self, own: Any = None) -> None:
        self.inputs, self.labels = data().tensors
        self.own = own

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
        if isinstance(self.own, torch.Generator):
            scale += 0.1 * float(torch.rand((), generator=self.own))
        elif self.own is not None:
            scale += 0.1 * self.own.random()
        return scale * self.inputs[index] + 0.1 * torch.randn(8), self.labels[index]


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, 8, generator=generator)
    return TensorDataset(inputs, (inputs.mean(1) > 0).long())


def shared_torch(workers: dict[str, int]) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    sampler = RandomSampler(
        range(ROWS), replacement=True, num_samples=ROWS, generator=generator
    )  # fmt: skip
    return DataLoader(Noisy(generator), BATCH, sampler=sampler, **workers)


def shared_numpy(workers: dict[str, int]) -> DataLoader:
    generator = np.random.default_rng(5)
    return DataLoader(Noisy(generator), BATCH, sampler=OwnGeneratorBuckets(generator), **workers)


LOADERS: dict[str, Callable[[dict[str, int]], DataLoader]] = {
    "torch": lambda w: DataLoader(Noisy(), BATCH, sampler=Buckets(), **w),
    "python": lambda w: DataLoader(Noisy(), BATCH, sampler=PythonBuckets(), **w),
    "numpy": lambda w: DataLoader(Noisy(), BATCH, sampler=NumpyBuckets(), **w),
    "batch sampler": lambda w: DataLoader(Noisy(), batch_sampler=BatchSizes(), **w),
    "shared torch": shared_torch,
    "shared numpy": shared_numpy,
}


class Loss(nn.Module):
    """Sends a signal in a training step."""

    def __init__(self, stop: int | None) -> None:
        super().__init__()
        self.num_steps, self.stop = 0, stop

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if preds.requires_grad:
            self.num_steps += 1
            if self.num_steps == self.stop:
                os.kill(os.getpid(), signal.SIGTERM)
        return nn.functional.cross_entropy(preds, labels)


Make = Callable[[], DataLoader]


def fit(
    folder: Path, make: Make, start: int = 0, stop: int | None = None, make_val: Make | None = None
) -> Any:
    """Train to the end, or to a step where a signal stops it; return what it came to, and told.

    Args:
        folder: of the run.
        make: makes the loader.
        start: a seed of Python's and numpy's generators, which a run that goes on does not mind.
        stop: a step of this process.
        make_val: makes the validation's loader.
    """
    torch.manual_seed(0)
    random.seed(start)
    np.random.seed(start)
    net = make_mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    model = KerasModel(net, Loss(stop), optimizer=optimizer)
    val = DataLoader(data(), 60) if make_val is None else make_val()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        history = model.fit(
            make(), val, epochs=3, ckpt_path=folder / "best", resume=True, plot=False
        )  # fmt: skip
    lines = said.getvalue().splitlines()
    return {
        **fingerprint(model, history),
        "told": sum(TOLD in line for line in lines),
        "resident": any(line.startswith("train_data is resident") for line in lines),
    }


def whole(folder: Path, make: Make, **options: Any) -> Any:
    folder.mkdir()
    return in_child(fit, folder, make, **options)


def go_on(folder: Path, make: Make, stops: list[int], **options: Any) -> Any:
    """Stop a run after so many steps of each process, and return what it came to in the end."""
    folder.mkdir()
    for start, stop in enumerate(stops):
        assert in_child(fit, folder, make, start, stop, **options) is None
    return in_child(fit, folder, make, len(stops), **options)


# within a bucket and at its end, in the first epoch and later, twice in one
STOPS = [[4], [9], [STEPS + 2, 4]]


@pytest.mark.parametrize(
    ("num_workers", "stops"), [*((0, stops) for stops in STOPS), (2, STOPS[-1])]
)
@pytest.mark.parametrize("kind", LOADERS)
def test_a_sampler_that_draws_as_it_goes(
    tmp_path: Path, kind: str, num_workers: int, stops: list[int]
):
    def make() -> DataLoader:
        return LOADERS[kind]({"num_workers": num_workers})

    assert go_on(tmp_path / "cut", make, stops) == whole(tmp_path / "whole", make)


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resident_data_with_a_sampler_that_draws_as_it_goes(
    tmp_path: Path, num_workers: int, stops: list[int]
):
    def make() -> DataLoader:
        return DataLoader(data(), BATCH, sampler=Buckets(), num_workers=num_workers)

    expected = whole(tmp_path / "whole", make)
    assert expected["resident"]
    assert go_on(tmp_path / "cut", make, stops) == expected


def test_the_draw_for_a_batch_that_cannot_be_read_is_done_again(tmp_path: Path):
    class Fails(Noisy):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            if index // 15 == 3:
                raise OSError("the disk has gone")
            return super().__getitem__(index)

    def make() -> DataLoader:
        return DataLoader(Noisy(), BATCH, sampler=Buckets())

    with pytest.raises(SampleError, match="the disk has gone"):
        fit(tmp_path, lambda: DataLoader(Fails(), BATCH, sampler=Buckets()))
    assert fit(tmp_path, make, start=1) == whole(tmp_path / "whole", make)


READINGS: dict[str, Callable[[Sampler], DataLoader]] = {
    "resident": lambda sampler: DataLoader(data(), BATCH, sampler=sampler),
    "in process": lambda sampler: DataLoader(Noisy(), BATCH, sampler=sampler),
    "workers": lambda sampler: DataLoader(Noisy(), BATCH, sampler=sampler, num_workers=2),
}


@pytest.mark.parametrize("stops", [*STOPS, [2 * STEPS]])
@pytest.mark.parametrize("reading", READINGS)
def test_a_sampler_that_counts_its_epochs(tmp_path: Path, reading: str, stops: list[int]):
    def make() -> DataLoader:
        return READINGS[reading](CountsEpochs())

    assert go_on(tmp_path / "cut", make, stops) == whole(tmp_path / "whole", make)


def fit_twice(folder: Path, loader: DataLoader, stop: int) -> Any:
    """Stop a run and go on with it in the same process, with the same loader."""
    gc.disable()  # it waits 5 s for each worker of an epoch that was left in the middle
    with pytest.raises(RunInterrupted):
        fit(folder, lambda: loader, stop=stop)
    return fit(folder, lambda: loader, start=1)


@pytest.mark.parametrize("stop", [4, STEPS + 2])
@pytest.mark.parametrize("reading", READINGS)
def test_the_same_sampler_in_the_same_process(tmp_path: Path, reading: str, stop: int):
    def make() -> DataLoader:
        return READINGS[reading](CountsEpochs())

    assert in_child(fit_twice, tmp_path, make(), stop) == whole(tmp_path / "whole", make)


def test_a_sampler_of_the_validation_that_counts_its_epochs(tmp_path: Path):
    class Half(CountsEpochs):
        def __iter__(self) -> Any:
            yield from itertools.islice(super().__iter__(), ROWS // 2)

    def make() -> DataLoader:
        return DataLoader(data(), BATCH, shuffle=True)

    def make_val() -> DataLoader:
        return DataLoader(Noisy(), 60, sampler=Half())

    found = go_on(tmp_path / "cut", make, [2 * STEPS + 3], make_val=make_val)
    assert found == whole(tmp_path / "whole", make, make_val=make_val)


@pytest.mark.parametrize("reading", READINGS)
def test_another_order_is_told(tmp_path: Path, reading: str):
    found = go_on(tmp_path / "cut", lambda: READINGS[reading](CountsHidden()), [STEPS + 3])
    assert found["told"] == 1


def test_a_changed_shuffle_is_told(tmp_path: Path):
    assert in_child(fit, tmp_path, lambda: DataLoader(data(), BATCH, shuffle=True), 0, 5) is None
    assert in_child(fit, tmp_path, lambda: DataLoader(data(), BATCH))["told"] == 1


@pytest.mark.parametrize(("stop", "told"), [(3, 0), (9, 1)])
def test_more_draws_than_are_kept_are_told(tmp_path: Path, monkeypatch, stop: int, told: int):
    monkeypatch.setattr(hotloop.data.order, "_MAX_DRAWS", 2)
    found = go_on(tmp_path / "cut", lambda: LOADERS["torch"]({}), [stop])
    assert found["told"] == told


def test_a_checkpoint_of_before_is_gone_on_with(tmp_path: Path, monkeypatch):
    to_plain = Position.to_plain

    def to_plain_before(self: Position) -> dict[str, Any]:
        new = ("order", "draws", "sampler")
        return {name: value for name, value in to_plain(self).items() if name not in new}

    def make() -> DataLoader:
        return DataLoader(Noisy(), BATCH, shuffle=True)

    monkeypatch.setattr(Position, "to_plain", to_plain_before)
    assert go_on(tmp_path / "cut", make, [5]) == whole(tmp_path / "whole", make)
