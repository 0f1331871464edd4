"""The main image job: a small convolutional net learns clothes, or digits where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from hotloop.errors import DatasetUnavailableError
from hotloop.experiments.bench.forms import EpochClock, has_fused_adam
from hotloop.experiments.bench.outcome import FormRun, ProcessResult, Tell
from hotloop.experiments.bench.peak_memory import PeakMemory
from hotloop.experiments.bench.plan import Spec
from hotloop.experiments.bench.startup import start_device
from hotloop.experiments.image_classifier import load_data, make_net
from hotloop.fitting.host_memory import HostMemory
from hotloop.fitting.speedups import to_channels_last
from hotloop.hardware.info import num_usable_cores
from hotloop.inspection.flops import make_flop_counter
from hotloop.model import KerasModel

BATCH_SIZE = 128
_LR = 0.01
_MOST_WORKERS = 2


class _Job:
    """The data, net and optimizer of the job, alike for every form."""

    def __init__(self, spec: Spec, device: torch.device) -> None:
        splits = load_data(spec.image_data, spec.data_folder or None)
        self.train = _take(splits.train, spec.sizes.image_train)
        self.val = _take(splits.val, spec.sizes.image_val)
        self.device = device
        self.epochs = spec.sizes.image_epochs
        torch.manual_seed(spec.seed)
        self.net = make_net()
        self.num_train, self.num_val = _length(self.train), _length(self.val)

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the loaders of both sets, with two workers where there are two cores."""
        num_workers = min(_MOST_WORKERS, num_usable_cores())
        keep: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": True}
        return (
            DataLoader(self.train, batch_size=BATCH_SIZE, shuffle=True, **keep),
            DataLoader(self.val, batch_size=BATCH_SIZE, **keep),
        )

    def make_metric(self) -> Any:
        """Return torchmetrics' accuracy."""
        from torchmetrics import Accuracy

        return Accuracy(task="multiclass", num_classes=10)

    def make_optimizer(self, **options: Any) -> torch.optim.Optimizer:
        """Return Adam on the net."""
        return torch.optim.Adam(self.net.parameters(), lr=_LR, **options)


def find_image_data(folder: str) -> tuple[str, str]:
    """Return the name of the data to take, and what the reader has to know of it, or "".

    Fashion-MNIST where it is here or can be downloaded, else the digits that ship with hotloop.
    """
    try:
        load_data("fashion-mnist", folder or None)
    except DatasetUnavailableError:
        return "digits", (
            "Fashion-MNIST is not here and could not be downloaded: the image experiment trains "
            "on the 1,797 digits that ship with hotloop."
        )
    return "fashion-mnist", ""


def run(spec: Spec, tell: Tell) -> ProcessResult:
    """Run one form for some epochs, training and validation; the answer is the val accuracy.

    Operations are those of convolutions and matrix products, counted by torch on a batch.
    """
    device = torch.device(spec.device)
    tell(0, spec.sizes.image_epochs, f"{spec.form}: starting the device")
    started_up = start_device(device)
    job = _Job(spec, device)
    flops = _count_flops(job)

    def count_epoch(done: int) -> None:
        tell(done, job.epochs, spec.form)

    forms = {"textbook": _textbook, "KerasModel": _keras_model, "floor": _floor}
    with PeakMemory(device) as memory:
        seconds, accuracy = forms[spec.form](job, count_epoch)
    warm = sorted(seconds[1:])[(len(seconds) - 1) // 2]
    started_up.seconds[f"first epoch, {spec.form}, beyond a warm one"] = max(seconds[0] - warm, 0.0)
    return ProcessResult(
        [FormRun(spec.form, seconds[0], seconds[1:], accuracy, memory.num_bytes)],
        started_up.seconds,
        flops=flops,
        data=f"{spec.image_data}: {job.num_train:,} training and {job.num_val:,} validation "
        f"images an epoch, batches of {BATCH_SIZE}",
    )


def _textbook(job: _Job, count_epoch: Callable[[int], None]) -> tuple[list[float], float]:
    net, device = job.net.to(job.device), job.device
    loss_fn, optimizer = nn.CrossEntropyLoss(), job.make_optimizer()
    metric = job.make_metric().to(device)
    train, val = job.loaders()
    accuracy = 0.0
    clock = EpochClock(count_epoch)
    for _ in range(job.epochs):
        net.train()
        total_loss = 0.0
        for inputs, labels in train:
            inputs, labels = inputs.to(device), labels.to(device)
            preds = net(inputs)
            loss = loss_fn(preds, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total_loss += loss.item()  # sync: the textbook's, in each step
            metric.update(preds, labels)
        metric.reset()
        net.eval()
        with torch.no_grad():
            for inputs, labels in val:
                inputs, labels = inputs.to(device), labels.to(device)
                preds = net(inputs)
                total_loss += loss_fn(preds, labels).item()  # sync: the same
                metric.update(preds, labels)
        accuracy = metric.compute().item()
        metric.reset()
        clock.tick(device)
    return clock.seconds, accuracy


def _keras_model(job: _Job, count_epoch: Callable[[int], None]) -> tuple[list[float], float]:
    model = KerasModel(
        job.net, nn.CrossEntropyLoss(), {"acc": job.make_metric()}, job.make_optimizer()
    )
    train, val = job.loaders()
    clock = EpochClock(count_epoch)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        history = model.fit(
            train,
            val,
            epochs=job.epochs,
            patience=job.epochs,
            monitor="val_acc",
            mode="max",
            callbacks=[clock],
            ckpt_path=Path(folder) / "weights.pt",
            cpu=job.device.type == "cpu",
            plot=False,
            quiet=True,
        )
    return clock.seconds, float(history["val_acc"].iloc[-1])


def _floor(job: _Job, count_epoch: Callable[[int], None]) -> tuple[list[float], float]:
    """Train on tensors that are on the device; reading them counts to the first epoch."""
    clock = EpochClock(count_epoch)
    inputs, labels = _read_whole(job, job.train)
    val_inputs, val_labels = _read_whole(job, job.val)
    channels_last: Any = {"memory_format": torch.channels_last}
    net = job.net.to(job.device).to(**channels_last)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = job.make_optimizer(fused=has_fused_adam(job.device))
    host_memory = HostMemory()
    if job.device.type == "cpu":
        host_memory.apply()
    accuracy = 0.0
    for _ in range(job.epochs):
        net.train()
        order = torch.randperm(len(inputs)).to(job.device)
        for rows in torch.split(order, BATCH_SIZE):
            some, classes = to_channels_last((inputs[rows], labels[rows]))
            loss_fn(net(some), classes).backward()
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
        hits = torch.zeros((), dtype=torch.int64, device=job.device)
        with torch.inference_mode():
            for some, classes in zip(
                torch.split(val_inputs, BATCH_SIZE),
                torch.split(val_labels, BATCH_SIZE),
                strict=True,
            ):
                preds = net(to_channels_last((some,))[0])
                loss_fn(preds, classes)
                hits += (preds.argmax(1) == classes).sum()
        accuracy = hits.item() / job.num_val  # sync: once an epoch
        clock.tick(job.device)
    host_memory.undo()
    return clock.seconds, accuracy


def _read_whole(job: _Job, dataset: Dataset[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all samples on the device: float32 (n, 1, 28, 28), channels last, and int64 (n,)."""
    batches = list(DataLoader(dataset, batch_size=512))
    images = torch.cat([batch[0] for batch in batches]).to(job.device)
    labels = torch.cat([batch[1] for batch in batches]).to(job.device)
    return images.contiguous(memory_format=torch.channels_last), labels


def _count_flops(job: _Job) -> float:
    """Return the operations of an epoch: forward and backward in training, forward after it."""
    net = make_net().eval()  # one of its own, so that the job's keeps its random numbers
    images = torch.zeros(1, 1, 28, 28)
    with make_flop_counter() as forward:
        preds = net(images)
    with make_flop_counter() as backward:
        preds.sum().backward()
    trained = forward.get_total_flops() + backward.get_total_flops()
    return float(job.num_train * trained + job.num_val * forward.get_total_flops())


def _take(dataset: Any, num_rows: int) -> Dataset[Any]:
    """Return the first rows of a data set, repeated where it has fewer; 0 for all."""
    if num_rows in (0, len(dataset)):
        return dataset  # type: ignore[no-any-return]
    return Subset(dataset, [row % len(dataset) for row in range(num_rows)])


def _length(dataset: Any) -> int:
    return len(dataset)
