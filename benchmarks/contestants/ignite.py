"""Ignite's supervised trainer and evaluator with its own metrics."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import (  # type: ignore[import, unused-ignore]
    Events,
    create_supervised_evaluator,
    create_supervised_trainer,
)
from ignite.metrics import Accuracy, Loss  # type: ignore[import, unused-ignore]

from benchmarks.contestants.one_input import with_one_input
from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    net = job.make_net().to(job.device)
    model, loss_fn = with_one_input(job, net), job.make_loss()
    train, val = job.loaders(pairs=True)
    trainer = create_supervised_trainer(
        model,
        job.make_optimizer(net.parameters()),
        loss_fn,
        device=job.device,
        output_transform=_keep_predictions,
    )
    evaluator = None
    if job.num_classes:
        Accuracy(output_transform=lambda output: output[:2], device=job.device).attach(
            trainer, "acc"
        )
        metrics = {"acc": Accuracy(device=job.device), "loss": Loss(loss_fn, device=job.device)}
        evaluator = create_supervised_evaluator(model, metrics=metrics, device=job.device)

    @trainer.on(Events.EPOCH_COMPLETED)  # type: ignore[untyped-decorator, unused-ignore]
    def validate() -> None:
        clock.train_ended()
        if evaluator is not None:
            evaluator.run(val)
        clock.epoch_ended()

    clock.start(net)
    trainer.run(train, max_epochs=num_epochs)
    clock.fit_ended()
    return Outcome(net, None if evaluator is None else float(evaluator.state.metrics["acc"]))


def _keep_predictions(
    inputs: Any, labels: torch.Tensor, preds: torch.Tensor, loss: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    del inputs
    return preds, labels, loss.item()
