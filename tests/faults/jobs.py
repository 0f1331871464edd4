"""Trainings to disturb: small, of many kinds, each with everything that draws random numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler
from torchmetrics import Accuracy, MetricCollection
from torchmetrics.classification import MulticlassF1Score
from zoo import Transformer, make_gan_model

from hotloop import KerasModel
from hotloop.data.reading import leave_with_parent

ROWS, EPOCHS = 600, 3


class Noisy(Dataset):
    """Rows with noise drawn when they are read, from torch's global generator."""

    def __init__(self, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.inputs, self.labels = rows

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.inputs[index]
        return inputs + 0.1 * torch.randn(inputs.shape), self.labels[index]


class HoldsGenerator(Noisy):
    """Rows with noise from a generator of the data set's own."""

    def __init__(self, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__(rows)
        self.generator = torch.Generator().manual_seed(3)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(self.inputs.shape[1:], generator=self.generator)
        return self.inputs[index] + 0.1 * noise, self.labels[index]


def rows(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, *shape, generator=generator)
    return inputs, (inputs.flatten(1).mean(1) > 0).long()


def make_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2)
    )


def make_conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout2d(0.1), nn.Flatten(), nn.Linear(8 * 16, 2),
    )  # fmt: skip


def accuracy() -> dict[str, nn.Module]:
    return {"acc": Accuracy(task="multiclass", num_classes=2)}


def mlp(loader: Any, **fit: Any) -> tuple[KerasModel, Any, dict[str, Any]]:
    net = make_mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    steps = EPOCHS * (ROWS // 20)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    return KerasModel(net, nn.CrossEntropyLoss(), accuracy(), optimizer, schedule), loader, fit


def resident() -> Any:
    return mlp(DataLoader(TensorDataset(*rows(8)), 20, shuffle=True))


def resident_own_generator() -> Any:
    generator = torch.Generator().manual_seed(9)
    weights = torch.rand(ROWS, generator=generator)
    sampler = WeightedRandomSampler(weights, ROWS, generator=generator)
    return mlp(DataLoader(TensorDataset(*rows(8)), 20, sampler=sampler, generator=generator))


def exact_in_process() -> Any:
    return mlp(DataLoader(Noisy(rows(8)), 20, shuffle=True), exact=True)


def workers() -> Any:
    return mlp(DataLoader(Noisy(rows(8)), 20, shuffle=True, num_workers=2))


def persistent_workers() -> Any:
    loader = DataLoader(
        Noisy(rows(8)), 20, shuffle=True, num_workers=2, persistent_workers=True, prefetch_factor=3
    )
    return mlp(loader)


def workers_with_generator() -> Any:
    return mlp(DataLoader(HoldsGenerator(rows(8)), 20, shuffle=True, num_workers=2))


def workers_that_live_on() -> Any:
    """Loaders of both stages have workers that hold generators and live on between epochs."""
    options: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
    model, _, fit = mlp(None)
    train = DataLoader(HoldsGenerator(rows(8)), 20, shuffle=True, **options)
    return model, train, {**fit, "val_data": DataLoader(Noisy(rows(8)), 200, **options)}


class OwnLoader(DataLoader):
    """A loader class of one's own, which starts its workers at the first batch."""

    def __iter__(self) -> Any:
        yield from super().__iter__()


def own_loader_with_persistent_workers() -> Any:
    loader = OwnLoader(
        TensorDataset(*rows(8)), 20, shuffle=True, num_workers=2, persistent_workers=True,
        # torch's own workers stay where their parent dies while they start
        worker_init_fn=lambda worker: leave_with_parent(),
    )  # fmt: skip
    return mlp(loader)


def batches_in_a_list() -> Any:
    inputs, labels = rows(8)
    return mlp([(inputs[i : i + 20], labels[i : i + 20]) for i in range(0, ROWS, 20)])


def conv() -> Any:
    net = make_conv()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    metrics = MetricCollection({"acc": Accuracy(task="multiclass", num_classes=2),
                                "f1": MulticlassF1Score(2)})  # fmt: skip
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, schedule)
    loader = DataLoader(TensorDataset(*rows(3, 8, 8)), 20, shuffle=True)
    return model, loader, {"monitor": "val_loss", "mode": "min"}


def accumulated() -> Any:
    net = make_mlp()
    model = KerasModel(
        net, nn.CrossEntropyLoss(), accuracy(), torch.optim.AdamW(net.parameters(), lr=0.01)
    )
    fit = {"gradient_accumulation_steps": 4, "clip_grad_norm": 0.5}
    return model, DataLoader(TensorDataset(*rows(8)), 14, shuffle=True), fit


def half_precision() -> Any:
    model, loader, _ = resident()
    return model, loader, {"mixed_precision": "bf16", "clip_grad_norm": 1.0}


def transformer() -> Any:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (ROWS, 6), generator=generator)
    samples = [
        {"ids": row, "mask": torch.ones(6), "labels": label}
        for row, label in zip(ids, (ids[:, 0] > 25).long(), strict=True)
    ]
    net = Transformer(dropout=0.1)
    model = KerasModel(net, nn.CrossEntropyLoss(), accuracy(), torch.optim.Adam(net.parameters()))
    return model, DataLoader(samples, 20, shuffle=True), {}


def gan() -> Any:
    loader = DataLoader(TensorDataset(*rows(8)), 20, shuffle=True)
    return make_gan_model(), loader, {"monitor": "val_loss", "mode": "min"}


JOBS: dict[str, Callable[[], Any]] = {
    job.__name__: job
    for job in (
        resident, resident_own_generator, exact_in_process, workers, persistent_workers,
        workers_with_generator, workers_that_live_on, own_loader_with_persistent_workers,
        batches_in_a_list,
        conv, accumulated, half_precision, transformer, gan,
    )
}  # fmt: skip


def run(job: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Train a job to its end, or go on with it; return what it came to."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, loader, fit = JOBS[job]()
    shape = (3, 8, 8) if job == "conv" else (8,)
    val = loader if job == "transformer" else DataLoader(TensorDataset(*rows(*shape)), 200)
    settings = {"val_data": val, "monitor": "val_acc", "mode": "max", "patience": 10}
    settings |= {**fit, **options}
    history = model.fit(
        loader, epochs=EPOCHS, ckpt_path=folder / "best", resume=True, save_every_steps=7,
        quiet=True, **settings,
    )  # fmt: skip
    return fingerprint(model, history)


def fingerprint(model: KerasModel, history: Any) -> dict[str, Any]:
    """Return the bits of weights, optimizer and random state, the history, and the best score."""
    digest = hashlib.sha256()
    for tensor in model.net.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    for parameter in model.net.parameters():
        for value in model.optimizer.state.get(parameter, {}).values():
            if isinstance(value, torch.Tensor):
                digest.update(value.contiguous().numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    return {"bits": digest.hexdigest(), "history": json.loads(history.to_json(double_precision=15))}
