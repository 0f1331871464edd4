"""Joined updates give bitwise the state of one update a batch, for each class on the list."""

from __future__ import annotations

import pytest
import torch
import torchmetrics.classification as tmc
from torch import nn

import hotloop.metrics as own
from hotloop import KerasModel
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


class Scores(nn.Module):
    """Gives its inputs on: logits in some batches, and what looks like probabilities in others."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return self.scale * inputs


@pytest.mark.parametrize("kind", [
    lambda: tmc.BinaryAccuracy(),
    lambda: tmc.BinaryConfusionMatrix(),
    lambda: tmc.BinaryAccuracy(ignore_index=-1),
])  # fmt: skip
def test_logits_are_told_from_probabilities_batch_by_batch(kind):
    """torchmetrics looks at each update: 0.3 beside a 5 is a logit, and beside 0.4 it is not."""
    rows = torch.tensor([5.0, -5.0, 0.3, 0.4, 0.2, 7.0, 0.6, 0.3])
    labels = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0])
    pairs = [(rows[i : i + 2], labels[i : i + 2].float()) for i in (0, 0, 2, 4, 6, 0)]
    found = []
    for exact in (True, False):
        net = Scores()
        optimizer = torch.optim.SGD(net.parameters(), 1e-9)
        model = KerasModel(net, nn.BCEWithLogitsLoss(), {"m": kind()}, optimizer)
        options = {"epochs": 1, "plot": False, "quiet": True, "cpu": True, "exact": exact}
        history = model.fit(pairs, pairs, **options)
        found.append((history["train_m"].tolist(), history["val_m"].tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("values", [
    [5.0, -5.0, 0.3], [0.3, 0.4, 0.6], [float("nan"), 0.3, 0.6], [float("nan"), 3.0, 0.6],
    [0.0, 1.0, 0.5], [float("inf"), 0.1, 0.9],
])  # fmt: skip
def test_joined_or_not_the_counts_are_those_of_an_update_a_batch(values):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (6, 3), generator=generator)
    preds = torch.rand(6, 3, generator=generator)
    preds[2], preds[4] = torch.tensor(values), 4 * preds[4] - 2
    alone, joined = tmc.BinaryStatScores(), tmc.BinaryStatScores()
    updates = BatchedUpdates({"m": joined})
    for pred, label in zip(preds, labels, strict=True):
        alone.update(pred, label)
        updates.add(pred, label)
    updates.flush()
    assert torch.equal(alone.compute(), joined.compute())


class Reader:
    """A stream that reads every batch into the same memory."""

    def __init__(self, as_arrays):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(40, 4, generator=generator)
        self.labels = torch.randint(0, 2, (40,), generator=generator)
        self.as_arrays = as_arrays

    def __len__(self):
        return 5

    def __iter__(self):
        inputs, labels = torch.empty(8, 4), torch.empty(8, dtype=torch.int64)
        for i in range(5):
            inputs.copy_(self.inputs[8 * i : 8 * i + 8])
            labels.copy_(self.labels[8 * i : 8 * i + 8])
            yield (inputs.numpy(), labels.numpy()) if self.as_arrays else (inputs, labels)


@pytest.mark.parametrize("as_arrays", [True, False])
def test_batches_that_share_their_memory_are_counted_as_they_were(as_arrays):
    found = []
    for exact in (True, False):
        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        metrics = {"acc": tmc.MulticlassAccuracy(num_classes=2, average="micro")}
        model = KerasModel(
            net, nn.CrossEntropyLoss(), metrics, torch.optim.SGD(net.parameters(), 0.1)
        )
        options = {"epochs": 2, "plot": False, "quiet": True, "cpu": True, "exact": exact}
        history = model.fit(Reader(as_arrays), Reader(as_arrays), **options)
        found.append((history["train_acc"].tolist(), history["val_acc"].tolist()))
    assert found[0] == found[1]
