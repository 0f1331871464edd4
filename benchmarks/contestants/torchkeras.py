"""torchkeras' KerasModel, without its bar and plot.

It clips gradients to norm 1.0 in every run and saves the best weights; neither can be turned off.
"""

from __future__ import annotations

from typing import Any

import torchkeras  # type: ignore[import, unused-ignore]
from torchkeras.kerasmodel import EpochRunner  # type: ignore[import, unused-ignore]

from benchmarks.contestants.hotloop import Watch
from benchmarks.contestants.one_input import with_one_input
from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job


class QuietEpochRunner(EpochRunner):  # type: ignore[misc, unused-ignore]
    """Shows no bar; ``fit`` alone would only leave it out in favour of a live plot."""

    def __init__(self, step_runner: Any, quiet: bool = True) -> None:
        del quiet
        super().__init__(step_runner, quiet=True)


class QuietModel(torchkeras.KerasModel):  # type: ignore[misc, unused-ignore]
    """Uses the quiet runner."""

    EpochRunner = QuietEpochRunner


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    net = job.make_net()
    metric = job.make_metric()
    wrapped = with_one_input(job, net)
    model = QuietModel(
        wrapped,
        loss_fn=job.make_loss(),
        metrics_dict={} if metric is None else {"acc": metric},
        optimizer=job.make_optimizer(net.parameters()),
    )
    train, val = job.loaders(pairs=True)
    clock.start(net)
    history = model.fit(
        train_data=train,
        val_data=val,
        epochs=num_epochs,
        patience=num_epochs,
        monitor="train_loss" if val is None else "val_loss",
        callbacks=[Watch(clock)],
        plot=False,
    )
    clock.fit_ended()
    return Outcome(net, None if val is None else float(history["val_acc"].iloc[-1]))
