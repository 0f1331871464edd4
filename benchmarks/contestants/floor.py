"""The floor: the same arithmetic on tensors in memory, with a fused optimizer and nothing else.

Images and convolutions are channels last, and freed memory stays with the process, as hotloop does.

Reading the samples into memory is not in its time. Where samples are random it replays those that
were read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.contestants.resident import accuracy_of, cut, fast_net, gather, read_whole
from benchmarks.jobs.job import Job
from hotloop.fitting.host_memory import HostMemory


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    net, loss_fn = fast_net(job), job.make_loss()
    optimizer = job.make_optimizer(net.parameters(), fused=True)
    train = None if job.full_batch_steps else read_whole(job, job.train)
    val = None if job.val is None else cut(read_whole(job, job.val), job.batch_size)
    accuracy = None
    if job.device.type == "cpu":
        HostMemory().apply()  # for the rest of this process
    clock.start(net)
    for _ in range(num_epochs):
        net.train()
        hits = torch.zeros((), dtype=torch.int64, device=job.device)
        for batch in _batches(job, train):
            preds, labels = job.forward(net, batch)
            loss_fn(preds, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if job.num_classes:
                hits += (preds.argmax(1) == labels).sum()
        hits.item()
        clock.train_ended()
        if val is not None:
            accuracy = accuracy_of(job, net, val)
        clock.epoch_ended()
    clock.fit_ended()
    return Outcome(net, accuracy)


def _batches(job: Job, train: Any) -> Iterator[Any]:
    if job.full_batch_steps:
        batch = job.full_batch()
        if job.device.type == "cpu":  # column by column, for vector units
            batch = (batch[0].t().contiguous().t(), *batch[1:])
        for _ in range(job.full_batch_steps):
            yield batch
        return
    num_rows = len(job.train)  # type: ignore[arg-type]
    order = torch.randperm(num_rows).to(job.device)
    for rows in order.split(job.batch_size):  # type: ignore[no-untyped-call]
        yield gather(train, rows)
