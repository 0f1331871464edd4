"""The loop as a textbook shows it: DataLoader, torchmetrics, ``.item()`` in each step."""

from __future__ import annotations

import torch

from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job, to_device


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    net = job.make_net().to(job.device)
    loss_fn, metric = job.make_loss(), job.make_metric()
    optimizer = job.make_optimizer(net.parameters())
    train, val = job.loaders()
    accuracy = None
    clock.start(net)
    for _ in range(num_epochs):
        net.train()
        total_loss = 0.0
        for batch in train:
            preds, labels = job.forward(net, to_device(batch, job.device))
            loss = loss_fn(preds, labels)
            loss.backward()
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
                    preds, labels = job.forward(net, to_device(batch, job.device))
                    total_loss += loss_fn(preds, labels).item()
                    metric.update(preds, labels)
            accuracy = metric.compute().item()
            metric.reset()
        clock.epoch_ended()
    clock.fit_ended()
    return Outcome(net, accuracy)
