"""Joined updates give bitwise the state of one update a batch, for each class on the list."""

from __future__ import annotations

import pytest
import torch
import torchmetrics.classification as tmc
from torch import nn

import hotloop.metrics as own
from hotloop.errors import MetricError
from hotloop.metrics.batched import _CONFUSION, _COUNTING, BatchedUpdates, can_be_joined

SIZES = (7, 7, 3, 64, 1)


def make(name):
    options = {}
    if name.startswith("Multiclass"):
        options["num_classes"] = 5
    elif name.startswith("Multilabel"):
        options["num_labels"] = 3
    if name.endswith("FBetaScore"):
        options["beta"] = 2.0
    return getattr(tmc, name)(**options)


def batches(name):
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        if name.startswith("Multiclass"):
            yield (
                torch.randn(size, 5, generator=generator),
                torch.randint(5, (size,), generator=generator),
            )
        elif name.startswith("Multilabel"):
            yield (
                torch.rand(size, 3, generator=generator),
                torch.randint(2, (size, 3), generator=generator),
            )
        else:
            yield (
                torch.rand(size, generator=generator),
                torch.randint(2, (size,), generator=generator),
            )


@pytest.mark.parametrize("name", [*_COUNTING, *_CONFUSION])
def test_torchmetrics(name):
    plain, joined = make(name), make(name)
    assert can_be_joined(plain)
    updates = BatchedUpdates(nn.ModuleDict({"m": joined}))
    for preds, labels in batches(name):
        plain.update(preds, labels)
        updates.add(preds, labels)
    updates.flush()
    for state in plain._defaults:
        assert torch.equal(getattr(plain, state), getattr(joined, state))
    torch.testing.assert_close(plain.compute(), joined.compute(), rtol=0, atol=0)


@pytest.mark.parametrize("name", own.__all__)
def test_own_metrics(name):
    options = {"num_classes": 5} if name == "IOU" else {}
    plain, joined = (getattr(own, name)(**options) for _ in range(2))
    updates = BatchedUpdates(nn.ModuleDict({"m": joined}))
    assert can_be_joined(plain)
    for preds, labels in batches("Multiclass" if name == "IOU" else "Binary"):
        plain.update(preds, labels)
        updates.add(preds, labels)
    updates.flush()
    assert torch.equal(plain.compute(), joined.compute())


def test_what_is_not_on_the_list_is_updated_for_each_batch():
    from torchmetrics import MeanSquaredError

    class Mine(tmc.BinaryAccuracy):
        pass

    assert not can_be_joined(MeanSquaredError())  # float sums: joining changes rounding
    assert not can_be_joined(Mine())
    assert not can_be_joined(tmc.BinaryAccuracy(multidim_average="samplewise"))
    assert not BatchedUpdates.serves(nn.ModuleDict({"a": make("BinaryAccuracy"), "b": Mine()}))
    assert not BatchedUpdates.serves(nn.ModuleDict())


def test_predictions_changed_in_place_are_noticed():
    updates = BatchedUpdates(nn.ModuleDict({"acc": make("BinaryAccuracy")}))
    preds, labels = torch.rand(4), torch.ones(4).long()
    updates.add(preds, labels)
    updates.add(preds, labels)
    preds.zero_()
    with pytest.raises(MetricError, match="changed in place"):
        updates.flush()


def test_batches_of_other_shapes_are_not_joined():
    metric = make("BinaryAccuracy")
    updates = BatchedUpdates(nn.ModuleDict({"acc": metric}))
    for shape in ((4,), (4,), (2, 3), (2, 3)):
        updates.add(torch.ones(shape), torch.ones(shape).long())
    updates.flush()
    assert metric.compute() == 1.0
    assert int(metric.tp) == 20
