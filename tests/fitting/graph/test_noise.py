"""By how much runs of one step differ."""

from __future__ import annotations

import pytest
import torch

from hotloop.fitting.graph.noise import Noise, share_among

BEFORE = [torch.zeros(4), torch.ones(1000), torch.ones(1000), torch.tensor(3)]


def make_run(seed=0, noise=0.0, where=(), count=4):
    """A step's results: the second and third tensor move by 0.1, with noise where it is wanted."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.full((4,), 0.5), torch.full((1000,), 1.1), torch.full((1000,), 0.9)]
    for place in where:
        size = tensors[place].shape
        tensors[place] = tensors[place] + noise * torch.randn(size, generator=generator)
    return [*tensors, torch.tensor(count)]


def test_runs_that_agree_cover_nothing_else():
    noise = Noise(make_run(), BEFORE)
    assert all(noise.add(make_run(seed)) for seed in range(3))
    assert noise.share == 0.0
    assert noise.covers(make_run())
    assert not noise.covers(make_run(1, 1e-6, [1]))


@pytest.mark.parametrize("where", [[1], [2], [1, 2]])
def test_a_tensor_in_which_calls_agreed_may_differ_by_as_large_a_share(where):
    noise = Noise(make_run(), BEFORE)
    assert not noise.add(make_run(1, 1e-4, [1]))
    assert noise.share == pytest.approx(1e-3, rel=0.1)
    assert noise.covers(make_run(2, 1e-4, where))
    assert not noise.covers(make_run(2, 1e-2, where))


def test_counts_are_one_of_those_that_were_seen():
    noise = Noise(make_run(), BEFORE)
    assert not noise.covers(make_run(count=5))
    assert not noise.add(make_run(count=5))
    assert noise.covers(make_run(count=5))
    assert not noise.covers(make_run(count=6))


def test_infinite_and_missing_values_are_left_out():
    run = make_run()
    run[1][0] = torch.inf
    noise = Noise(run, BEFORE)
    other = make_run(1, 1e-5, [1])
    other[1][1] = torch.nan
    assert not noise.add(other)
    assert 0 < noise.share < 1e-3


def test_replays_that_differ_little_are_noisy_and_those_that_differ_much_are_wrong():
    little = [make_run(), *(make_run(seed, 1e-6, [1]) for seed in (1, 2))]
    share = share_among(little, BEFORE)
    assert 0 < share < 1e-4
    noise = Noise(make_run(), BEFORE)
    assert noise.covers(make_run(3, 1e-6, [1, 2]), share)
    much = [make_run(), make_run(1, 0.1, [1])]
    assert share_among(much, BEFORE) == 0.0
    assert share_among([make_run(), make_run()], BEFORE) == 0.0
