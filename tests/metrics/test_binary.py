"""Counts of two classes: torchkeras' numbers, shapes, nothing seen, sums, and no waits."""

from __future__ import annotations

import pytest
import torch
from no_waits import NoWaits
from sklearn import metrics as sk

from hotloop.errors import MetricError
from hotloop.metrics import Accuracy, Precision, Recall

KINDS = (Accuracy, Precision, Recall)
REFERENCES = {
    Accuracy: sk.accuracy_score,
    Precision: lambda y, p: sk.precision_score(y, p, zero_division=0),
    Recall: lambda y, p: sk.recall_score(y, p, zero_division=0),
}


def make_batch(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    preds = torch.randn(size, generator=generator)
    return preds, torch.randint(2, (size,), generator=generator)


def test_torchkeras_formulas_on_logits():
    preds, truth = make_batch(101)
    found, wanted = preds.sigmoid() >= 0.5, truth > 0.5
    hits = (found & wanted).sum()
    assert Accuracy()(preds, truth) == (found == wanted).float().mean()
    assert Precision()(preds, truth) == hits / found.sum()
    assert Recall()(preds, truth) == hits / wanted.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preds", [[-1.0], [1.0], [-1.0, -2.0], [1.0, 2.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_and_one_sample(kind, preds, label):
    preds, truth = torch.tensor(preds), torch.full((len(preds),), label)
    expected = REFERENCES[kind](truth.numpy(), (preds >= 0).numpy())
    assert kind()(preds, truth).item() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("preds_shape", "targets_shape"),
    [((6,), (6, 1)), ((6, 1), (6,)), ((1, 6), (6,)), ((2, 1, 3, 1), (2, 3)), ((2, 3), (2, 3))],
)
def test_dimensions_of_one_do_not_matter(kind, preds_shape, targets_shape):
    preds, truth = make_batch(6)
    expected = kind()(preds, truth)
    assert kind()(preds.reshape(preds_shape), truth.reshape(targets_shape)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_squeezed_batch_of_one(kind):
    assert kind()(torch.tensor(2.0), torch.tensor([1])) == 1.0


@pytest.mark.parametrize(("left", "right"), [((4, 2), (4,)), ((2, 3), (3, 2)), ((4,), (5,))])
def test_other_shapes_are_refused(left, right):
    metric = Accuracy()
    with pytest.raises(MetricError) as caught:
        metric.update(torch.zeros(left), torch.zeros(right))
    assert str(left) in str(caught.value)
    assert str(right) in str(caught.value)
    assert torch.isnan(metric.compute())  # a refused batch leaves no trace
    with pytest.raises(MetricError, match="list and Tensor"):
        metric.update([0.5], torch.ones(1))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_seen(kind):
    empty = torch.zeros(0)
    for value in (kind().compute(), kind()(empty, empty)):
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert torch.isnan(value) if kind is Accuracy else value == 0


@pytest.mark.parametrize("kind", KINDS)
def test_counts_add_up_over_processes(kind):
    preds, truth = make_batch(40)
    whole, left, right = kind(), kind(), kind()
    whole.update(preds, truth)
    left.update(preds[:13], truth[:13])
    right.update(preds[13:], truth[13:])
    for name, count in left.named_buffers():
        count += getattr(right, name)
    assert left.compute() == whole.compute()


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_integer_buffers_outside_checkpoints(kind):
    metric = kind().double().half()
    assert {buffer.dtype for buffer in metric.buffers()} == {torch.int64}
    assert not metric.state_dict()
    assert {b.device.type for b in kind().to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_dtypes(kind, dtype):
    preds, truth = torch.tensor([1, -1, 2, 0]), torch.tensor([True, False, False, True])
    assert kind()(preds.to(dtype), truth) == kind()(preds.float(), truth.float())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_on_the_device(kind):
    metric, (preds, truth) = kind(), make_batch(20)
    preds.requires_grad_()
    with NoWaits():
        metric.update(preds, truth)
        value = metric(preds, truth)
        total = metric.compute()
        metric.reset()
    assert not value.requires_grad
    assert value == total
