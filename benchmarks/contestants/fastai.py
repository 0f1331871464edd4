"""fastai's Learner with the job's own optimizer at a constant learning rate."""

from __future__ import annotations

from functools import partial

import fastai.callback.progress  # type: ignore[import, unused-ignore]  # noqa: F401
from fastai.callback.core import Callback  # type: ignore[import, unused-ignore]
from fastai.data.core import DataLoaders  # type: ignore[import, unused-ignore]
from fastai.learner import Learner  # type: ignore[import, unused-ignore]
from fastai.metrics import accuracy  # type: ignore[import, unused-ignore]
from fastai.optimizer import OptimWrapper  # type: ignore[import, unused-ignore]

from benchmarks.contestants.one_input import with_one_input
from benchmarks.contestants.outcome import Clock, NotAvailableError, Outcome
from benchmarks.jobs.job import Job


class Watch(Callback):  # type: ignore[misc, unused-ignore]
    """Tells the clock how far a fit is."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def after_train(self) -> None:
        self.clock.train_ended()

    def after_epoch(self) -> None:
        self.clock.epoch_ended()


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    if job.val is None:
        raise NotAvailableError("a fastai Learner needs validation data")
    net = job.make_net()
    options = {name: value for name, value in job.optimizer_options.items() if name != "lr"}
    learner = Learner(
        DataLoaders(*job.loaders(pairs=True), device=job.device),
        with_one_input(job, net).to(job.device),
        loss_func=job.make_loss(),
        opt_func=partial(OptimWrapper, opt=job.optimizer, **options),
        lr=job.optimizer_options["lr"],
        metrics=accuracy,
        cbs=[Watch(clock)],
    )
    clock.start(net)
    # no_bar is a method that fastai.callback.progress gives to Learner
    with learner.no_bar(), learner.no_logging():
        learner.fit(num_epochs)
    clock.fit_ended()
    return Outcome(net, float(learner.recorder.values[-1][-1]))
