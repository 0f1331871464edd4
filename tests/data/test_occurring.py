"""Labels that occur, found a part at a time."""

from __future__ import annotations

import torch

from hotloop.data import occurring
from hotloop.data.encoding import AsIs
from hotloop.data.occurring import OccurringValues


def test_parts_together_have_all(monkeypatch):
    monkeypatch.setattr(occurring, "_ROWS_AT_ONCE", 7)
    masks = torch.randint(-3, 20, (10, 4, 5))
    found = OccurringValues(masks, AsIs(torch.int64), None).distinct()
    assert torch.equal(found, masks.unique())
    rows = torch.tensor([2, 2, 5])
    assert torch.equal(
        OccurringValues(masks, AsIs(torch.int64), rows).distinct(), masks[rows].unique()
    )


def test_too_many_to_be_classes(monkeypatch):
    monkeypatch.setattr(occurring, "_MAX_DISTINCT", 100)
    assert OccurringValues(torch.arange(100), AsIs(torch.int64), None).distinct() is not None
    assert OccurringValues(torch.arange(101), AsIs(torch.int64), None).distinct() is None
