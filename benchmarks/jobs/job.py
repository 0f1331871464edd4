"""What a contestant trains: data, net, loss, metric and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate


@dataclass(frozen=True)
class Setting:
    """What the sizes of a job depend on.

    Attributes:
        device: where contestants train.
        quick: tiny sizes, to try that everything runs.
        image_data: "fashion-mnist", or "digits" where that is not to be had.
    """

    device: torch.device
    quick: bool = False
    image_data: str = "fashion-mnist"

    def rows(self, *, cpu: int, cuda: int, quick: int) -> int:
        """Return the rows for this device."""
        if self.quick:
            return quick
        return cuda if self.device.type == "cuda" else cpu


class Batches(list[Any]):
    """An epoch as a list of ready batches; unlike a list's, its attributes can be set."""


@dataclass(frozen=True)
class Job:
    """One training job; every call of a ``make_`` method gives a new object.

    Attributes:
        data: what the rows are, for the table.
        device: where it is trained.
        train: the training samples.
        val: the validation samples; None for none.
        make_net: float32 nets with random weights from torch's generator.
        make_loss: the loss, called as ``loss(preds, labels)``.
        optimizer: the optimizer's class.
        optimizer_options: its arguments.
        num_classes: for the accuracy; 0 for a regression, which has no metric but its loss.
        batch_size: samples a step.
        num_workers: processes of each loader.
        label_key: the labels' key where samples are dicts, whose other keys are arguments of the
            net; None where samples are ``(inputs, label)``.
        full_batch_steps: where not 0, an epoch is so many steps, each on all of ``train``.
    """

    data: str
    device: torch.device
    train: Dataset[Any]
    val: Dataset[Any] | None
    make_net: Callable[[], nn.Module]
    make_loss: Callable[[], nn.Module]
    optimizer: type[torch.optim.Optimizer]
    num_classes: int
    batch_size: int
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    num_workers: int = 0
    label_key: str | None = None
    full_batch_steps: int = 0

    def make_optimizer(self, parameters: Iterable[Any], **extra: Any) -> torch.optim.Optimizer:
        return self.optimizer(parameters, **{**self.optimizer_options, **extra})

    def make_metric(self) -> Any:
        """Return torchmetrics' accuracy on the device, or None for a regression."""
        if not self.num_classes:
            return None
        from torchmetrics import Accuracy

        return Accuracy(task="multiclass", num_classes=self.num_classes).to(self.device)

    def loaders(self, pairs: bool = False) -> tuple[Any, Any]:
        """Return the iterables of training and validation batches; the latter may be None.

        Args:
            pairs: for libraries that only know ``(inputs, labels)``: where samples are dicts, a
                batch is a pair of the inputs' dict and the labels.
        """
        if self.full_batch_steps:
            return Batches([self.full_batch()] * self.full_batch_steps), None
        options = self.loader_options(pairs)
        train = DataLoader(self.train, shuffle=True, **options)
        return train, None if self.val is None else DataLoader(self.val, **options)

    def loader_options(self, pairs: bool = False) -> dict[str, Any]:
        """Return the arguments of both loaders but the data and the order."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        if self.num_workers:
            options["persistent_workers"] = True
        if pairs and self.label_key is not None:
            options["collate_fn"] = CollatePairs(self.label_key)
        return options

    def full_batch(self) -> tuple[torch.Tensor, ...]:
        """Return all training rows as one batch on the device."""
        return tuple(part.to(self.device) for part in self.train[:])

    def split(self, batch: Any) -> tuple[Any, torch.Tensor]:
        """Return inputs (a tensor, or a dict of the net's arguments) and labels of a batch."""
        if self.label_key is None:
            inputs, labels = batch
            return inputs, labels
        return split_labels(batch, self.label_key)

    def forward(self, net: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the net's predictions and the labels of a batch that is on the device."""
        inputs, labels = self.split(batch)
        preds = net(**inputs) if isinstance(inputs, dict) else net(inputs)
        return preds, labels

    def evaluate(self, net: nn.Module) -> float:
        """Return the accuracy on the validation samples, or a regression's mean loss."""
        net = net.to(self.device).float().eval()
        good, num_rows = 0.0, 0
        with torch.no_grad():
            for batch in self._evaluation_batches():
                preds, labels = self.forward(net, to_device(batch, self.device))
                if self.num_classes:
                    good += (preds.argmax(1) == labels).sum().item()
                else:
                    good += self.make_loss()(preds, labels).item() * len(labels)
                num_rows += len(labels)
        return good / num_rows

    def _evaluation_batches(self) -> Iterator[Any]:
        if self.full_batch_steps:
            yield self.full_batch()
            return
        if self.val is None:
            raise ValueError("a job needs validation samples, or full_batch_steps")
        yield from DataLoader(self.val, batch_size=256)


class CollatePairs:
    """Collates samples that are dicts into ``(dict of inputs, labels)``."""

    def __init__(self, label_key: str) -> None:
        self.label_key = label_key

    def __call__(self, samples: list[Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return split_labels(default_collate(samples), self.label_key)


def split_labels(
    batch: Mapping[str, torch.Tensor], label_key: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the inputs and the labels of a batch that is a dict."""
    return {key: value for key, value in batch.items() if key != label_key}, batch[label_key]


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch, a dict or a sequence of tensors, on ``device``."""
    if isinstance(batch, Mapping):
        return {key: value.to(device) for key, value in batch.items()}
    return [value.to(device) for value in batch]


@dataclass(frozen=True)
class JobFamily:
    """A table of the benchmark: one job, or several that differ in one size.

    Attributes:
        name: as on the command line.
        title: one line on what is trained.
        variants: makers of the jobs; a single one is called like the table.
        epochs: how many, when the command does not say.
        measure: what the main figure of the table is, in seconds: "epoch", or "first step".
        without: contestants that make no sense here.
        only: the contestants when the command names none; empty for all.
        in_overview: whether it is a column of the README's table.
    """

    name: str
    title: str
    variants: dict[str, Callable[[Setting], Job]]
    epochs: int = 2
    measure: str = "epoch"
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    in_overview: bool = True
