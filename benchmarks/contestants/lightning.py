"""A LightningModule and a Trainer without logger, checkpoints, bar and summary."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl  # type: ignore[import, unused-ignore]
import torch

from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job


class Module(pl.LightningModule):  # type: ignore[misc, unused-ignore]
    """The job's net, loss and metric."""

    def __init__(self, job: Job, clock: Clock) -> None:
        super().__init__()
        self.job, self.clock = job, clock
        self.net, self.loss_fn = job.make_net(), job.make_loss()
        self.train_acc, self.val_acc = job.make_metric(), job.make_metric()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        del batch_idx
        preds, labels = self.job.forward(self.net, batch)
        loss: torch.Tensor = self.loss_fn(preds, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        if self.train_acc is not None:
            self.train_acc.update(preds, labels)
            self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        del batch_idx
        preds, labels = self.job.forward(self.net, batch)
        self.log("val_loss", self.loss_fn(preds, labels), batch_size=len(labels))
        self.val_acc.update(preds, labels)
        self.log("val_acc", self.val_acc, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.job.make_optimizer(self.net.parameters())

    def on_validation_start(self) -> None:
        self.clock.train_ended()

    def on_train_epoch_end(self) -> None:
        self.clock.epoch_ended()  # Lightning has validated by then


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module(job, clock)
    trainer = pl.Trainer(
        max_epochs=num_epochs,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    train, val = job.loaders()
    clock.start(module.net)
    trainer.fit(module, train, val)
    clock.fit_ended()
    accuracy = trainer.callback_metrics.get("val_acc")
    return Outcome(module.net, None if accuracy is None else float(accuracy))
