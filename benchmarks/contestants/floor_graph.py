"""The floor on a CUDA device: the whole step as one CUDA graph, captured by hand.

Follows "Whole-network capture" in PyTorch's notes on CUDA semantics. The first three steps run
eagerly on a side stream and count as training; a short last batch runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.contestants.outcome import Clock, NotAvailableError, Outcome
from benchmarks.contestants.resident import accuracy_of, cut, fast_net, gather, read_whole
from benchmarks.jobs.job import Job

NUM_WARMUP_STEPS = 3


class GraphedStep:
    """One training step on the rows it is given, replayed once it has been captured.

    Attributes:
        rows: int64 (batch_size,) on the device: the input that each replay reads.
    """

    def __init__(self, step: Callable[[torch.Tensor], None], job: Job, optimizer: Any) -> None:
        self.step, self.optimizer = step, optimizer
        self.rows = torch.zeros(job.batch_size, dtype=torch.int64, device=job.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self._num_eager = 0
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call, unused-ignore]

    def __call__(self, rows: torch.Tensor) -> None:
        if len(rows) != len(self.rows):
            self._run_eagerly(rows)
        elif self.graph is not None:
            self.rows.copy_(rows)
            self.graph.replay()
        elif self._num_eager < NUM_WARMUP_STEPS:
            self._num_eager += 1
            self._run_eagerly(rows)
        else:
            self._capture()
            self(rows)

    def _run_eagerly(self, rows: torch.Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # the gradients of the graph stay its own: an eager step gets new ones
            self.optimizer.zero_grad(set_to_none=True)
            self.step(rows)
        torch.cuda.current_stream().wait_stream(self._stream)

    def _capture(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step(self.rows)


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    if job.device.type != "cuda":
        raise NotAvailableError("a CUDA graph needs a CUDA device")
    net, loss_fn = fast_net(job), job.make_loss()
    optimizer = job.make_optimizer(net.parameters(), fused=True, capturable=True)
    train = job.full_batch() if job.full_batch_steps else read_whole(job, job.train)
    val = None if job.val is None else cut(read_whole(job, job.val), job.batch_size)
    hits = torch.zeros((), dtype=torch.int64, device=job.device)

    def step(rows: torch.Tensor) -> None:
        batch = train if job.full_batch_steps else gather(train, rows)
        preds, labels = job.forward(net, batch)
        loss_fn(preds, labels).backward()
        optimizer.step()
        if job.num_classes:
            hits.add_((preds.argmax(1) == labels).sum())

    graphed = GraphedStep(step, job, optimizer)
    accuracy = None
    clock.start(net)
    for _ in range(num_epochs):
        net.train()
        hits.zero_()
        for rows in _rows(job, graphed):
            graphed(rows)
        hits.item()
        clock.train_ended()
        if val is not None:
            accuracy = accuracy_of(job, net, val)
        clock.epoch_ended()
    clock.fit_ended()
    return Outcome(net, accuracy)


def _rows(job: Job, graphed: GraphedStep) -> Iterator[torch.Tensor]:
    if job.full_batch_steps:
        # a step on all rows reads none of these
        for _ in range(job.full_batch_steps):
            yield graphed.rows
        return
    num_rows = len(job.train)  # type: ignore[arg-type]
    order = torch.randperm(num_rows).to(job.device)
    yield from order.split(job.batch_size)  # type: ignore[no-untyped-call]
