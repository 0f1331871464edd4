"""What is noted of samplers, so that another process can ask for the same order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from hotloop.data.generators import AllRandomStates
from hotloop.data.order import Order
from hotloop.data.position import Position
from hotloop.data.sampler_attributes import SamplerAttributes
from hotloop.data.sampling import draws_first

STATES = AllRandomStates(torch.device("cpu"), {})


def checksums(batches: list) -> list[int]:
    order = Order(STATES)
    list(order.follow(batches, draws_first=True, reads_here=False))
    return order.noted(1)["order"]


def test_indices_are_the_same_whatever_holds_them():
    expected = checksums([[3, 1], [2]])
    assert checksums([torch.tensor([3, 1]), torch.tensor([2], dtype=torch.int32)]) == expected
    assert checksums([np.array([3, 1]), (torch.tensor(2),)]) == expected
    other = checksums([[3, 1], [4]])
    assert (other[0] == expected[0], other[1] == expected[1]) == (True, False)
    assert checksums([["a", "b"]]) == checksums([("a", "b")]) != checksums([["a", "c"]])


def test_a_sampler_that_gives_less_is_not_the_same():
    order = Order(STATES, Position(num_batches=2, order=checksums([[3, 1], [2]])[1:]))
    list(order.follow([[3, 1]], draws_first=True, reads_here=False))
    assert not order.end_replay()


def draw(between: bool) -> dict:
    """Return the draws that are kept of three, with others in between or not."""

    def batches():
        for _ in range(3):
            yield torch.randperm(4).tolist()

    order = Order(STATES)
    for _ in order.follow(batches(), draws_first=False, reads_here=True):
        if between:
            torch.rand(1)
    return order.noted(1)["draws"]


def test_states_are_kept_where_something_else_has_drawn():
    assert draw(between=False) == {}
    assert {number: list(states) for number, states in draw(between=True).items()} == {
        1: ["torch"],
        2: ["torch"],
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"replacement": True}, True),
        ({"generator": torch.Generator()}, True),
        ({"generator": torch.Generator(), "num_samples": 3}, True),
        ({"generator": torch.Generator(), "num_samples": 20}, False),
        ({"generator": torch.Generator(), "replacement": True}, False),
    ],
)
def test_which_of_torchs_samplers_draw_all_at_first(options: dict, expected: bool):
    assert draws_first(BatchSampler(RandomSampler(range(10), **options), 4, False)) == expected


class Counts(Sampler):
    def __init__(self, seed: int, inner: Sampler | None = None) -> None:
        self.seed, self.inner = seed, inner
        self.epoch, self.recent = 0, []
        self.weights = torch.ones(3)

    def advance(self) -> None:
        self.epoch += 1
        self.recent.append(self.epoch)


def test_attributes_that_move_are_put_back_and_others_are_the_users():
    def samplers(seed: int) -> tuple[Counts, Counts, SamplerAttributes]:
        inner = Counts(seed)
        outer = Counts(seed, inner)
        loader = DataLoader(range(4), 2, sampler=outer)
        return outer, inner, SamplerAttributes(loader.batch_sampler)

    outer, inner, attributes = samplers(seed=3)
    outer.advance()
    at_start = attributes.read()
    inner.advance()
    saved = attributes.those_that_move(at_start)
    assert saved == {
        "sampler.epoch": 1, "sampler.recent": [1], "sampler.inner.epoch": 0,
        "sampler.inner.recent": [],
    }  # fmt: skip
    attributes.restore(saved)  # as after going back
    assert (outer.epoch, outer.recent, inner.epoch, inner.recent) == (1, [1], 0, [])

    outer, inner, attributes = samplers(seed=4)
    attributes.restore(saved)
    assert (outer.epoch, outer.recent, outer.seed, inner.seed) == (1, [1], 4, 4)
    # they are part of the run from now on, though they have not moved in this process
    assert attributes.those_that_move(attributes.read()) == saved


def test_going_back_to_before_an_attribute_moved():
    sampler = Counts(0)
    attributes = SamplerAttributes(sampler)
    saved = attributes.those_that_move(attributes.read())
    sampler.advance()
    attributes.restore(saved)
    assert (saved, sampler.epoch, sampler.recent) == ({}, 0, [])
