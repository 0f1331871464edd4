"""Each contestant trains a job for some epochs: seconds of each epoch, and the final val accuracy.

An epoch is training and validation. Peers run without logging, checkpoints and bars, where they can
be turned off; each computes the accuracy that its users see. A contestant whose package is not
installed raises ImportError, and is reported as such.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.jobs import Job

Result = tuple[list[float], float]


class Clock:
    """Notes the end of each epoch."""

    def __init__(self) -> None:
        self.marks = [time.perf_counter()]

    def start(self) -> None:
        self.marks = [time.perf_counter()]

    def tick(self) -> None:
        self.marks.append(time.perf_counter())

    @property
    def epochs(self) -> list[float]:
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def accuracy_of(job: Job) -> Any:
    from torchmetrics import Accuracy

    return Accuracy(task="multiclass", num_classes=job.num_classes)


def handwritten(job: Job, num_epochs: int) -> Result:
    """Train as a textbook shows it."""
    net, loss_fn, accuracy = job.make_net(), job.make_loss(), accuracy_of(job)
    optimizer, (train, val) = job.make_optimizer(net.parameters()), job.loaders()
    clock, score = Clock(), 0.0
    for _ in range(num_epochs):
        net.train()
        total = 0.0
        for inputs, labels in train:
            optimizer.zero_grad()
            preds = net(inputs)
            loss = loss_fn(preds, labels)
            loss.backward()
            optimizer.step()
            accuracy.update(preds, labels)
            total += loss.item()
        accuracy.compute().item()
        accuracy.reset()
        net.eval()
        with torch.no_grad():
            for inputs, labels in val:
                preds = net(inputs)
                total += loss_fn(preds, labels).item()
                accuracy.update(preds, labels)
        score = accuracy.compute().item()
        accuracy.reset()
        clock.tick()
    return clock.epochs, score


def floor(job: Job, num_epochs: int) -> Result:
    """The same arithmetic on resident tensors with nothing else; reading them is not timed."""
    from torch.utils.data import default_collate

    def whole(dataset: Any) -> list[torch.Tensor]:
        return list(default_collate([dataset[index] for index in range(len(dataset))]))

    train, val = whole(job.train), whole(job.val)
    net, loss_fn = job.make_net(), job.make_loss()
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = job.make_optimizer(net.parameters())
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
    clock, score = Clock(), 0.0
    for _ in range(num_epochs):
        net.train()
        hits = torch.zeros((), dtype=torch.int64)
        for rows in torch.randperm(len(train[0])).split(job.batch_size):
            inputs, labels = train[0][rows], train[1][rows]
            preds = net(inputs)
            loss_fn(preds, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            hits += (preds.argmax(1) == labels).sum()
        net.eval()
        hits = torch.zeros((), dtype=torch.int64)
        with torch.inference_mode():
            for inputs, labels in zip(*(part.split(job.batch_size) for part in val), strict=True):
                preds = net(inputs)
                loss_fn(preds, labels)
                hits += (preds.argmax(1) == labels).sum()
        score = int(hits) / len(val[0])
        clock.tick()
    return clock.epochs, score


def hotloop(job: Job, num_epochs: int, **options: Any) -> Result:
    """The five lines."""
    from hotloop import KerasModel

    clock = Clock()

    class Watch:
        def on_validation_epoch_end(self, model: Any) -> None:
            del model
            clock.tick()

    net, (train, val) = job.make_net(), job.loaders()
    model = KerasModel(
        net, job.make_loss(), {"acc": accuracy_of(job)}, job.make_optimizer(net.parameters())
    )
    clock.start()
    history = model.fit(
        train, val, epochs=num_epochs, patience=num_epochs, plot=False, quiet=True,
        callbacks=[Watch()], **options,
    )  # fmt: skip
    return clock.epochs, float(history["val_acc"].iloc[-1])


def hotloop_exact(job: Job, num_epochs: int) -> Result:
    """The five lines with bitwise the plain loop's numbers."""
    return hotloop(job, num_epochs, exact=True)


def torchkeras(job: Job, num_epochs: int) -> Result:
    """Torchkeras' KerasModel; it always clips gradients to norm 1.0."""
    from torchkeras import KerasModel

    clock = Clock()

    class Watch:
        def on_validation_epoch_end(self, model: Any) -> None:
            del model
            clock.tick()

    net, (train, val) = job.make_net(), job.loaders()
    model = KerasModel(
        net, job.make_loss(), {"acc": accuracy_of(job)}, job.make_optimizer(net.parameters())
    )
    clock.start()
    with open(os.devnull, "w") as nowhere, __import__("contextlib").redirect_stdout(nowhere):
        history = model.fit(
            train, val, epochs=num_epochs, patience=num_epochs, plot=False, callbacks=[Watch()]
        )
    return clock.epochs, float(history["val_acc"].iloc[-1])


def lightning(job: Job, num_epochs: int) -> Result:
    """A LightningModule and a bare Trainer."""
    import logging

    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = Clock()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss_fn = job.make_net(), job.make_loss()
            self.train_acc, self.val_acc = accuracy_of(job), accuracy_of(job)

        def training_step(self, batch: Any, index: int) -> Any:
            del index
            preds = self.net(batch[0])
            loss = self.loss_fn(preds, batch[1])
            self.train_acc.update(preds, batch[1])
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            del index
            preds = self.net(batch[0])
            self.log("val_loss", self.loss_fn(preds, batch[1]))
            self.val_acc.update(preds, batch[1])
            self.log("val_acc", self.val_acc, on_epoch=True)

        def configure_optimizers(self) -> Any:
            return job.make_optimizer(self.net.parameters())

        def on_train_epoch_end(self) -> None:
            clock.tick()  # Lightning validates before this hook

    trainer = pl.Trainer(
        max_epochs=num_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    clock.start()
    trainer.fit(Module(), *job.loaders())
    return clock.epochs, float(trainer.callback_metrics["val_acc"])


def accelerate(job: Job, num_epochs: int) -> Result:
    """The textbook loop with Hugging Face's Accelerator."""
    from accelerate import Accelerator

    accelerator, accuracy = Accelerator(), accuracy_of(job)
    net = job.make_net()
    net, optimizer, train, val = accelerator.prepare(
        net, job.make_optimizer(net.parameters()), *job.loaders()
    )
    loss_fn, clock, score = job.make_loss(), Clock(), 0.0
    for _ in range(num_epochs):
        net.train()
        for inputs, labels in train:
            optimizer.zero_grad()
            preds = net(inputs)
            loss = loss_fn(preds, labels)
            accelerator.backward(loss)
            optimizer.step()
            accuracy.update(preds, labels)
            loss.item()
        accuracy.compute()
        accuracy.reset()
        net.eval()
        with torch.no_grad():
            for inputs, labels in val:
                preds, targets = accelerator.gather_for_metrics((net(inputs), labels))
                loss_fn(preds, targets).item()
                accuracy.update(preds, targets)
        score = accuracy.compute().item()
        accuracy.reset()
        clock.tick()
    return clock.epochs, score


def ignite(job: Job, num_epochs: int) -> Result:
    """Ignite's supervised trainer and evaluator."""
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, Loss

    net, loss_fn, (train, val) = job.make_net(), job.make_loss(), job.loaders()
    trainer = create_supervised_trainer(
        net, job.make_optimizer(net.parameters()), loss_fn,
        output_transform=lambda _, y, preds, loss: (preds, y, loss.item()),
    )  # fmt: skip
    Accuracy(output_transform=lambda output: output[:2]).attach(trainer, "acc")
    metrics = {"acc": Accuracy(), "loss": Loss(loss_fn)}
    evaluator = create_supervised_evaluator(net, metrics=metrics)
    clock = Clock()

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        evaluator.run(val)
        clock.tick()

    clock.start()
    trainer.run(train, max_epochs=num_epochs)
    return clock.epochs, float(evaluator.state.metrics["acc"])


def skorch(job: Job, num_epochs: int) -> Result:
    """Skorch's NeuralNetClassifier, with a fixed validation set."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback, EpochScoring
    from skorch.helper import predefined_split

    clock = Clock()

    class Watch(Callback):
        def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
            del net, kwargs
            clock.tick()

    net = job.make_net()
    groups = job.make_optimizer(net.parameters())
    model = NeuralNetClassifier(
        net, criterion=job.make_loss(), optimizer=type(groups),
        lr=groups.param_groups[0]["lr"], max_epochs=num_epochs, batch_size=job.batch_size,
        train_split=predefined_split(job.val), iterator_train__shuffle=job.shuffle,
        iterator_train__num_workers=job.num_workers, iterator_valid__num_workers=job.num_workers,
        callbacks=[("train_acc", EpochScoring("accuracy", on_train=True, name="train_acc",
                                              lower_is_better=False)), ("watch", Watch())],
        callbacks__print_log=None, verbose=0, classes=list(range(job.num_classes)),
    )  # fmt: skip
    clock.start()
    model.fit(job.train, None)
    return clock.epochs, float(model.history[-1]["valid_acc"])


def poutyne(job: Job, num_epochs: int) -> Result:
    """Poutyne's Model."""
    from poutyne import Callback, Model

    clock = Clock()

    class Watch(Callback):
        def on_epoch_end(self, epoch_number: int, logs: Any) -> None:
            del epoch_number, logs
            clock.tick()

    net, (train, val) = job.make_net(), job.loaders()
    model = Model(net, job.make_optimizer(net.parameters()), job.make_loss(),
                  batch_metrics=["accuracy"])  # fmt: skip
    clock.start()
    logs = model.fit_generator(train, val, epochs=num_epochs, callbacks=[Watch()], verbose=False)
    return clock.epochs, float(logs[-1]["val_acc"]) / 100


CONTESTANTS: dict[str, Callable[[Job, int], Result]] = {
    function.__name__: function
    for function in (
        handwritten,
        floor,
        hotloop,
        hotloop_exact,
        torchkeras,
        lightning,
        accelerate,
        ignite,
        skorch,
        poutyne,
    )
}


def run_contestant(name: str, job: Job, num_epochs: int, seed: int) -> Result:
    """Run one contestant in a folder of its own, where peers may leave files."""
    accuracy_of(job)  # imports torchmetrics for all alike, outside of their time
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = os.getcwd()
        os.chdir(folder)
        try:
            return CONTESTANTS[name](job, num_epochs)
        finally:
            os.chdir(before)
