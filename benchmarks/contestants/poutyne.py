"""Poutyne's Model with its batch accuracy."""

from __future__ import annotations

from typing import Any

from poutyne import Callback, Model  # type: ignore[import, unused-ignore]

from benchmarks.contestants.one_input import with_one_input
from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job


class Watch(Callback):  # type: ignore[misc, unused-ignore]
    """Tells the clock how far a fit is."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_valid_begin(self, logs: Any) -> None:
        del logs
        self.clock.train_ended()

    def on_epoch_end(self, epoch_number: int, logs: Any) -> None:
        del epoch_number, logs
        self.clock.epoch_ended()


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    net = job.make_net()
    model = Model(
        with_one_input(job, net),
        job.make_optimizer(net.parameters()),
        job.make_loss(),
        batch_metrics=["accuracy"] if job.num_classes else None,
        device=job.device,
    )
    train, val = job.loaders(pairs=True)
    clock.start(net)
    logs = model.fit_generator(
        train, val, epochs=num_epochs, callbacks=[Watch(clock)], verbose=False
    )
    clock.fit_ended()
    return Outcome(net, float(logs[-1]["val_acc"]) / 100 if job.num_classes else None)
