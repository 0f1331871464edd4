"""skorch's NeuralNetClassifier or NeuralNetRegressor, with a fixed validation set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from skorch import NeuralNet, NeuralNetClassifier  # type: ignore[import, unused-ignore]
from skorch.callbacks import Callback, EpochScoring  # type: ignore[import, unused-ignore]
from skorch.helper import predefined_split  # type: ignore[import, unused-ignore]

from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job


class Watch(Callback):  # type: ignore[misc, unused-ignore]
    """Tells the clock how far a fit is; skorch names no end of training in an epoch."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.validating = False

    def on_batch_begin(
        self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any
    ) -> None:
        del net, batch, kwargs
        if not training and not self.validating:
            self.validating = True
            self.clock.train_ended()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        del net, kwargs
        self.validating = False
        self.clock.epoch_ended()


class SameBatch:
    """An iterator for skorch: all rows at once, so many times."""

    def __init__(self, dataset: Any, job: Job, **kwargs: Any) -> None:
        del dataset, kwargs
        self.batch, self.num_steps = job.full_batch(), job.full_batch_steps

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.num_steps):
            yield self.batch


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    net = job.make_net()
    options: dict[str, Any] = {
        "criterion": job.make_loss(),
        "optimizer": job.optimizer,
        "max_epochs": num_epochs,
        "batch_size": job.batch_size,
        "device": str(job.device),
        "verbose": 0,
        "callbacks__print_log": None,
        **{f"optimizer__{name}": value for name, value in job.optimizer_options.items()},
    }
    model = _regressor(job, net, clock, options) if job.val is None else None
    model = model or _classifier(job, net, clock, options)
    clock.start(net)
    model.fit(job.train, None)
    clock.fit_ended()
    accuracy = model.history[-1].get("valid_acc")
    return Outcome(net, None if accuracy is None else float(accuracy))


def _regressor(job: Job, net: Any, clock: Clock, options: dict[str, Any]) -> Any:
    return NeuralNet(
        net,
        **options,
        train_split=None,
        iterator_train=SameBatch,
        iterator_train__job=job,
        callbacks=[("watch", Watch(clock))],
    )


def _classifier(job: Job, net: Any, clock: Clock, options: dict[str, Any]) -> Any:
    loader_options = {
        f"iterator_{stage}__{name}": value
        for stage in ("train", "valid")
        for name, value in job.loader_options(pairs=True).items()
    }
    train_accuracy = EpochScoring(
        "accuracy", on_train=True, name="train_acc", lower_is_better=False
    )
    return NeuralNetClassifier(
        net,
        **options,
        **loader_options,
        classes=list(range(job.num_classes)),
        train_split=predefined_split(job.val),
        iterator_train__shuffle=True,
        callbacks=[("train_acc", train_accuracy), ("watch", Watch(clock))],
    )
