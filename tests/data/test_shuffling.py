"""Shuffles are a RandomSampler's, drawn ahead or not, and leave the generators as it does."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from hotloop.data import shuffling
from hotloop.data.sampling import IndexBatches
from hotloop.data.shuffling import Shuffles

NUM_ROWS = 5000
HERE, AHEAD = threading.current_thread().name, "hotloop-shuffle"


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
    """Return what tells the thread of each permutation, once all of them are drawn."""
    names = []
    real = torch.randperm

    def watched(*args, **kwargs):
        names.append(threading.current_thread().name)
        return real(*args, **kwargs)

    def wait():
        for thread in threading.enumerate():
            if thread.name == AHEAD:
                thread.join()

    def read():
        wait()
        return names

    wait()  # for those of tests before
    monkeypatch.setattr(torch, "randperm", watched)
    return read


@pytest.mark.parametrize("own", [False, True])
def test_they_are_drawn_ahead_once_the_distance_is_known(threads, own):
    generator = torch.Generator().manual_seed(1) if own else None
    shuffles = Shuffles(ahead=True)
    for _ in range(4):
        shuffles.draw(NUM_ROWS, generator)
        draw_seeds(2, generator)
    each = 2 if own else 1
    assert sorted(threads()) == sorted(([HERE] * 2 + [AHEAD] * 3) * each)


@pytest.mark.parametrize("num_rows", [10, NUM_ROWS])
def test_they_are_drawn_when_they_are_due_otherwise(threads, num_rows):
    shuffles = Shuffles(ahead=num_rows == 10)  # too few to be worth a thread
    for _ in range(4):
        shuffles.draw(num_rows, None)
    assert set(threads()) == {HERE}


def test_a_guess_that_fails_is_not_used(threads):
    shuffles = Shuffles(ahead=True)
    for _ in range(3):
        shuffles.draw(NUM_ROWS, None)
    torch.manual_seed(7)
    order = list(plain())
    torch.manual_seed(7)
    before = threads().count(HERE)
    assert shuffles.draw(NUM_ROWS, None).tolist() == order
    assert threads().count(HERE) == before + 1


def test_more_rows_than_before():
    shuffles, sampler = Shuffles(ahead=True), RandomSampler(range(NUM_ROWS + 1))
    for _ in range(3):
        shuffles.draw(NUM_ROWS, None)
    torch.manual_seed(7)
    order = list(sampler)
    torch.manual_seed(7)
    assert shuffles.draw(NUM_ROWS + 1, None).tolist() == order


@pytest.mark.parametrize("what", ["memory", "threads"])
def test_where_it_cannot_be_drawn_ahead_it_is_when_it_is_due(what, monkeypatch):
    real = torch.randperm

    def fails_in_threads(*args, **kwargs):
        if threading.current_thread().name == AHEAD:
            raise RuntimeError("not enough memory")
        return real(*args, **kwargs)

    def never_starts(thread):
        raise RuntimeError("can't start new thread")

    if what == "memory":
        monkeypatch.setattr(torch, "randperm", fails_in_threads)
    else:
        monkeypatch.setattr(threading.Thread, "start", never_starts)
    torch.manual_seed(0)
    expected = [list(plain()) for _ in range(4)]
    torch.manual_seed(0)
    shuffles = Shuffles(ahead=True)
    assert [shuffles.draw(NUM_ROWS, None).tolist() for _ in range(4)] == expected


def test_what_another_thread_draws_meanwhile_stays_drawn(monkeypatch):
    """Its seed is not given to a shuffle as well."""
    real, drawn = shuffling._Ahead.wait, []

    def waits_while_another_draws(ahead):
        rows = real(ahead)
        drawn.append(int(torch.empty((), dtype=torch.int64).random_()))
        return rows

    shuffles = Shuffles(ahead=True)
    for _ in range(3):
        shuffles.draw(NUM_ROWS, None)
    torch.manual_seed(3)
    shuffles.draw(NUM_ROWS, None)  # a miss
    shuffles.draw(NUM_ROWS, None)
    monkeypatch.setattr(shuffling._Ahead, "wait", waits_while_another_draws)
    state = torch.get_rng_state()
    order = list(plain())
    following = int(torch.empty((), dtype=torch.int64).random_())
    torch.set_rng_state(state)
    assert shuffles.draw(NUM_ROWS, None).tolist() == order
    assert drawn == [following]


@pytest.mark.parametrize("own", [False, True])
def test_a_loaders_batches_with_shuffles_ahead(own):
    """Epochs of ``IndexBatches`` are the loader's, one of them broken off.

    Not with a generator of the user's own, whose second permutation the loader draws at the end.
    """
    orders = []
    for replay in (False, True):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1) if own else None
        loader = DataLoader(range(NUM_ROWS), 700, shuffle=True, generator=generator)
        batches = IndexBatches(loader, ahead=True)
        found = []
        for epoch in range(6):
            rows = batches.epoch_rows() if replay else iter(loader)
            found += list(itertools.islice(rows, None if own or epoch != 3 else 2))
            draw_seeds(1)
        orders.append(torch.cat(found))
    assert torch.equal(*orders)
