"""Workers chosen by what steps wait: decisions on made-up times."""

from __future__ import annotations

import pytest

from hotloop.data import worker_count
from hotloop.data.proof import Proof
from hotloop.data.reading import ReadCost
from hotloop.data.worker_count import WorkerCount

STEP, READ = 0.012, 0.04  # seconds: four workers keep up


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch):
    monkeypatch.setattr(worker_count, "usable_cores", lambda: 4)


class Run:
    """Training by ``WorkerCount``, with the times of a device and of readers that wait.

    Args:
        batch_seconds: what the proof expects of reading.
        startup: seconds that each worker needs to start.
        work_share: of reading, that it computes.
    """

    def __init__(self, batch_seconds=0.001, startup=0.001, work_share=0.0, step=STEP):
        self.said, self.startup, self.work_share = [], startup, work_share
        self.step = step
        proof = Proof(None, batch_seconds, work_share)
        self.count = WorkerCount("train_data", 200, batch_seconds, proof, self.said.append)

    def read(self, num_batches):
        """Read so many batches with the workers that are wanted, or until others are."""
        workers = self.count.num_workers
        self.count.begin_reading(READ + self.startup * workers, 200)
        waited = max(READ / workers - self.step, 0) if workers else READ
        cost = ReadCost(READ, READ * self.work_share, ())
        for _ in range(num_batches):
            self.count.note(cost, waited, self.step + waited)
            if self.count.num_workers != workers:
                return


def test_as_many_as_keep_up():
    run = Run()
    assert run.count.num_workers == 0
    run.read(5)
    assert not run.said  # too few to tell
    run.read(6)
    assert run.count.num_workers == 4
    assert "77% of the time between batches is waiting for train_data: trying 4" in run.said[0]
    run.read(8 + 8)  # what was read ahead at the start says nothing
    assert run.count.settled
    assert "is read by 4 workers instead of none, 4 batches ahead each" in run.said[1]
    assert len(run.said) == 2


def test_slow_samples_have_workers_at_once_and_more_where_these_are_late():
    run = Run(batch_seconds=READ, step=0.001)
    assert run.count.num_workers == 8
    assert "about 40 ms: trying 8 workers" in run.said[0]
    run.read(16 + 16)
    assert run.count.num_workers == 16
    assert not run.count.settled
    run.read(32 + 32)
    assert run.count.settled
    assert "is read by 16 workers" in run.said[-1]


def test_workers_that_are_not_needed_go_after_the_epoch():
    run = Run(batch_seconds=READ)
    run.read(16 + 16)
    assert (run.count.num_workers, run.count.settled) == (8, True)
    run.count.begin_epoch()
    assert run.count.num_workers == 5  # one more than keep up
    run.count.begin_epoch()
    assert run.count.num_workers == 5


def test_workers_that_bring_nothing_go_at_once():
    run = Run(startup=10.0)
    run.read(6)
    run.read(8 + 8)
    assert (run.count.num_workers, run.count.settled) == (0, True)
    assert "read without workers as before: an epoch was not faster with 4" in run.said[-1]


def test_readers_that_compute_are_no_more_than_the_cores():
    run = Run(work_share=1.0, step=0.001)
    run.read(6)
    assert run.count.num_workers == 4
    run.read(8 + 8)
    assert (run.count.num_workers, run.count.settled) == (4, True)


def test_less_is_read_ahead_where_memory_is_short(monkeypatch):
    run = Run(batch_seconds=READ)
    assert run.count.prefetch() == 4
    run.count.batch_bytes = 10
    monkeypatch.setattr(worker_count, "free_bytes", lambda device: 3000)
    assert run.count.prefetch() == 2
