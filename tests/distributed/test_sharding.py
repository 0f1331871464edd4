"""Sharing a loader's batches out over processes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from hotloop.distributed.sharding import OrderGenerator, ShardPlan, check_shardable, shard_loader
from hotloop.errors import DataError


@given(
    num_samples=st.integers(2, 300),
    batch_size=st.integers(1, 40),
    num_processes=st.integers(2, 5),
    drop_last=st.booleans(),
)
def test_every_sample_once_and_no_process_without(
    num_samples, batch_size, num_processes, drop_last
):
    if num_samples < num_processes:
        return
    plan = ShardPlan(num_samples, batch_size, num_processes, drop_last)
    full = batch_size * num_processes
    seen = []
    start = 0
    for step, size in enumerate(plan.step_sizes):
        for process in range(num_processes):
            first, last = plan.bounds(step, process)
            assert last > first
            seen += range(start + first, start + last)
        sizes = {
            last - first for first, last in (plan.bounds(step, p) for p in range(num_processes))
        }
        assert max(sizes) - min(sizes) <= 1
        start += size
    kept = num_samples // full * full if drop_last else num_samples
    assert seen == list(range(kept))
    assert all(size == full for size in plan.step_sizes[:-1])


def loader_of(num_samples, **options):
    numbers = torch.arange(num_samples)
    return DataLoader(TensorDataset(numbers), **{"batch_size": 4, **options})


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("seeded", [False, True])
def test_steps_hold_the_samples_of_one_process_with_larger_batches(num_workers, seeded):
    def make(batch_size, num_workers=0):
        generator = torch.Generator().manual_seed(5) if seeded else None
        return loader_of(
            27, batch_size=batch_size, shuffle=True, generator=generator, num_workers=num_workers
        )

    torch.manual_seed(3)
    state = torch.get_rng_state()
    alone = make(8)
    expected = [[set(batch[0].tolist()) for batch in alone] for _ in range(2)]
    after = torch.get_rng_state()

    shares, states = [], []
    for process in range(2):
        torch.manual_seed(100 + process)  # the net's own random numbers
        order = OrderGenerator(state)
        loader = shard_loader(make(4, num_workers), "train_data", process, 2, order)
        shares.append([[batch[0].tolist() for batch in loader] for _ in range(2)])
        states.append(order.state)
    for epoch in range(2):
        together = [set(a + b) for a, b in zip(shares[0][epoch], shares[1][epoch], strict=True)]
        assert together == expected[epoch]
    if not seeded:
        assert torch.equal(states[0], after)
        assert torch.equal(states[1], after)


def test_orders_of_a_weighted_sampler_agree():
    sampler = WeightedRandomSampler(torch.arange(20.0), 20)
    state = torch.get_rng_state()
    drawn = []
    for process in range(2):
        loader = shard_loader(
            loader_of(20, sampler=sampler), "train_data", process, 2, OrderGenerator(state)
        )
        drawn.append([len(batch[0]) for batch in loader])
    assert drawn == [[4, 4, 2], [4, 4, 2]]


def test_a_distributed_sampler_of_the_group_is_kept():
    data = TensorDataset(torch.arange(10))
    own = DataLoader(data, 2, sampler=DistributedSampler(data, num_replicas=2, rank=1))
    assert shard_loader(own, "train_data", 1, 2, OrderGenerator(torch.get_rng_state())) is own
    with pytest.raises(DataError, match="shuffle=True or False instead"):
        check_shardable(own, "train_data", 2, started_here=True)
    with pytest.raises(DataError, match="for 2 processes made before the 3 processes"):
        check_shardable(own, "train_data", 3)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(4))


class Own(Sampler):
    def __iter__(self):
        return iter([1, 0])

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([(torch.ones(2), torch.ones(2))], "train_data is a list, whose batches cannot be shared"),
        (DataLoader(Stream(), 2), "reads the stream Stream"),
        (loader_of(2, sampler=Own()), "has a Own, whose order may differ"),
        (loader_of(1), "1 samples for 2 processes, and each needs one"),
        (loader_of(7, drop_last=True), "make no full step of 2 times 4, and drop_last"),
    ],
)
def test_what_cannot_be_shared_out(loader, message):
    with pytest.raises(DataError, match=message):
        check_shardable(loader, "train_data", 2)
