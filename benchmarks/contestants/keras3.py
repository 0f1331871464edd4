"""Keras 3 on torch: the net as a layer, Keras' own loss, optimizer and metric."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported

from typing import Any

import keras  # type: ignore[import, unused-ignore]
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.contestants.one_input import with_one_input
from benchmarks.contestants.outcome import Clock, NotAvailableError, Outcome
from benchmarks.jobs.job import Job


class WrappedNet(keras.Model):  # type: ignore[misc, unused-ignore]
    """A torch net as a Keras model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.wrapped = keras.layers.TorchModuleWrapper(net)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.wrapped(inputs, training=training)


class Watch(keras.callbacks.Callback):  # type: ignore[misc, unused-ignore]
    """Tells the clock how far a fit is."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_test_begin(self, logs: Any = None) -> None:
        del logs
        self.clock.train_ended()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        del epoch, logs
        self.clock.epoch_ended()


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    net = job.make_net()
    model = WrappedNet(with_one_input(job, net))
    model.compile(
        loss=_make_loss(job),
        optimizer=_make_optimizer(job),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="acc")] if job.num_classes else None,
    )
    train, val = job.loaders(pairs=True)
    if job.full_batch_steps:
        train = DataLoader(train, batch_size=None)  # Keras takes no list of batches
    clock.start(net)
    history = model.fit(
        train, validation_data=val, epochs=num_epochs, verbose=0, callbacks=[Watch(clock)]
    )
    clock.fit_ended()
    return Outcome(net, float(history.history["val_acc"][-1]) if job.num_classes else None)


def _make_loss(job: Job) -> Any:
    loss = job.make_loss()
    if isinstance(loss, nn.CrossEntropyLoss):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if isinstance(loss, nn.MSELoss):
        return keras.losses.MeanSquaredError()
    raise NotAvailableError(f"no Keras loss is written down here for {type(loss).__name__}")


def _make_optimizer(job: Job) -> Any:
    options = {**job.optimizer_options, "epsilon": 1e-8}  # torch's; Keras has 1e-7
    options["learning_rate"] = options.pop("lr")
    if job.optimizer is torch.optim.Adam:
        return keras.optimizers.Adam(**options)
    if job.optimizer is torch.optim.AdamW:
        return keras.optimizers.AdamW(**options)
    raise NotAvailableError(f"no Keras optimizer is written down here for {job.optimizer.__name__}")
