"""Shuffles are a RandomSampler's, drawn ahead or not, and leave the generators as it does."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.data import RandomSampler

from hotloop.data import shuffling
from hotloop.data.shuffling import Shuffles

NUM_ROWS = 5000


def run_epochs(draw, generator, between):
    """Return the orders of some epochs, and both generators' states after each."""
    torch.manual_seed(0)
    outcomes = []
    for epoch in range(len(between)):
        order = draw()
        outcomes.append((order, torch.get_rng_state(), generator and generator.get_state()))
        between[epoch]()
    return outcomes


def draw_seeds(count, generator=None):
    for _ in range(count):
        torch.empty((), dtype=torch.int64).random_(generator=generator)


def plain(generator=None):
    return RandomSampler(range(NUM_ROWS), generator=generator)


BETWEEN = {
    "nothing": [lambda: None] * 5,
    "one seed": [lambda: draw_seeds(1)] * 5,
    "two seeds": [lambda: draw_seeds(2)] * 5,
    "more each time": [lambda count=count: draw_seeds(count) for count in (0, 3, 1, 9, 2, 2, 2)],
    "other numbers": [lambda: torch.rand(3)] * 4,
    "a seed of the user's": [lambda: torch.manual_seed(3)] * 4,
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("between", list(BETWEEN.values()), ids=list(BETWEEN))
def test_they_are_the_samplers(between, own, ahead):
    generators = [torch.Generator().manual_seed(1) if own else None for _ in range(2)]
    sampler, shuffles = plain(generators[0]), Shuffles(ahead)
    expected = run_epochs(lambda: list(sampler), generators[0], between)
    found = run_epochs(lambda: shuffles.draw(NUM_ROWS, generators[1]), generators[1], between)
    for (order, *states), (rows, *states_left) in zip(expected, found, strict=True):
        assert rows.tolist() == order
        for state, left in zip(states, states_left, strict=True):
            assert state is left is None or torch.equal(state, left)


@pytest.fixture
def threads(monkeypatch):
    """Return a list that gets the name of the thread of each shuffle."""
    names = []

    class Watched(shuffling._Shuffle):
        def run(self):
            names.append(threading.current_thread().name)
            return super().run()

    monkeypatch.setattr(shuffling, "_Shuffle", Watched)
    return names


@pytest.mark.parametrize("own", [False, True])
def test_they_are_drawn_ahead_once_the_distance_is_known(threads, own):
    generator = torch.Generator().manual_seed(1) if own else None
    shuffles = Shuffles(ahead=True)
    for _ in range(4):
        shuffles.draw(NUM_ROWS, generator)
        draw_seeds(2, generator)
    here = threading.current_thread().name
    assert sorted(threads) == sorted([here] * 2 + ["hotloop-shuffle"] * 3)


@pytest.mark.parametrize("num_rows", [10, NUM_ROWS])
def test_they_are_drawn_when_they_are_due_otherwise(threads, num_rows):
    shuffles = Shuffles(ahead=num_rows == 10)  # too few to be worth a thread
    for _ in range(4):
        shuffles.draw(num_rows, None)
    assert set(threads) == {threading.current_thread().name}


def test_a_guess_that_fails_is_not_used(threads):
    shuffles = Shuffles(ahead=True)
    for _ in range(3):
        shuffles.draw(NUM_ROWS, None)
    torch.manual_seed(7)
    order = list(plain())
    torch.manual_seed(7)
    assert shuffles.draw(NUM_ROWS, None).tolist() == order
    assert threads.count(threading.current_thread().name) == 3


def test_more_rows_than_before(threads):
    shuffles = Shuffles(ahead=True)
    for _ in range(3):
        shuffles.draw(NUM_ROWS, None)
    assert shuffles.draw(NUM_ROWS + 1, None).sort().values.equal(torch.arange(NUM_ROWS + 1))


def test_where_it_could_not_be_drawn_ahead_it_is_when_it_is_due(monkeypatch):
    real = torch.randperm

    def fails_in_threads(*args, **kwargs):
        if threading.current_thread().name == "hotloop-shuffle":
            raise RuntimeError("not enough memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "randperm", fails_in_threads)
    torch.manual_seed(0)
    expected = [list(plain()) for _ in range(4)]
    torch.manual_seed(0)
    shuffles = Shuffles(ahead=True)
    assert [shuffles.draw(NUM_ROWS, None).tolist() for _ in range(4)] == expected
