"""The textbook loop with Hugging Face's Accelerator."""

from __future__ import annotations

import torch
from accelerate import Accelerator  # type: ignore[import, unused-ignore]

from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    accelerator = Accelerator()
    bare_net = job.make_net()
    net, optimizer, train, val = accelerator.prepare(
        bare_net, job.make_optimizer(bare_net.parameters()), *job.loaders()
    )
    loss_fn, metric = job.make_loss(), job.make_metric()
    accuracy = None
    clock.start(bare_net)
    for _ in range(num_epochs):
        net.train()
        total_loss = 0.0
        for batch in train:
            preds, labels = job.forward(net, batch)
            loss = loss_fn(preds, labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total_loss += loss.item()
            if metric is not None:
                metric.update(preds, labels)
        if metric is not None:
            metric.compute().item()
            metric.reset()
        clock.train_ended()
        if val is not None:
            net.eval()
            total_loss = 0.0
            with torch.no_grad():
                for batch in val:
                    preds, labels = accelerator.gather_for_metrics(job.forward(net, batch))
                    total_loss += loss_fn(preds, labels).item()
                    metric.update(preds, labels)
            accuracy = metric.compute().item()
            metric.reset()
        clock.epoch_ended()
    clock.fit_ended()
    return Outcome(bare_net, accuracy)
