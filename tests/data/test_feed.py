"""Batches that are on the device are handed on as they are; a device without memory stands in."""

from __future__ import annotations

import pytest
import torch

from hotloop.data.feed import Feed
from hotloop.timing.clock import StepClock

META = torch.device("meta")


@pytest.mark.parametrize("container", [list, tuple])
def test_what_is_there_is_not_touched(container):
    batch = container([torch.ones(3, device=META), torch.ones(2, device=META)])
    moved = Feed(META, StepClock(META)).move(batch)
    assert type(moved) is container
    assert all(a is b for a, b in zip(moved, batch, strict=True))
    assert container is tuple or moved is not batch  # a list of the user's is nobody else's


@pytest.mark.parametrize("batch", [
    [torch.ones(3, device=META), torch.ones(2)],
    {"inputs": torch.ones(3)},
    [[torch.ones(3)], torch.ones(2, device=META)],
])  # fmt: skip
def test_what_is_not_is_moved(batch):
    moved = Feed(META, StepClock(META)).move(batch)
    leaves = torch.utils._pytree.tree_leaves(moved)
    assert [leaf.device for leaf in leaves] == [META] * len(leaves)
