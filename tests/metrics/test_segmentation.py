"""IOU: torchkeras' numbers, ignored labels, shapes, sums, and no waits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_waits import NoWaits
from sklearn import metrics as sk

from hotloop.errors import MetricError
from hotloop.metrics import IOU


def make_batch(num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    preds = torch.randn(4, num_classes, 5, 6, generator=generator)
    return preds, torch.randint(max(num_classes, 2), (4, 5, 6), generator=generator)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_torchkeras_formula(num_classes):
    preds, truth = make_batch(num_classes)
    cells = num_classes * truth.flatten() + preds.argmax(1).flatten()
    matrix = cells.bincount(minlength=num_classes**2).reshape(num_classes, num_classes).float()
    ious = matrix.diag() / (matrix.sum(1) + matrix.sum(0) - matrix.diag())
    metric = IOU(num_classes)
    assert metric(preds, truth).item() == pytest.approx(ious.mean().item())
    assert torch.equal(metric.mat, matrix.long())


@settings(max_examples=60, deadline=None)
@given(
    num_classes=st.integers(2, 5),
    pixels=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40),
    cut=st.integers(0, 40),
)
def test_against_scikit_learn(num_classes, pixels, cut):
    truth = torch.tensor([pair[0] % num_classes for pair in pixels])
    found = torch.tensor([pair[1] % num_classes for pair in pixels])
    preds = torch.nn.functional.one_hot(found, num_classes).float()
    metric = IOU(num_classes)
    metric.update(preds[:cut], truth[:cut])
    metric.update(preds[cut:], truth[cut:])
    # scikit-learn's default labels are those that occur: classes that are nowhere are left out
    expected = sk.jaccard_score(truth.numpy(), found.numpy(), average="macro", zero_division=0)
    assert metric.compute().item() == pytest.approx(expected)


def test_labels_out_of_range_are_ignored():
    preds, truth = make_batch(3)
    ignored = truth.clone()
    ignored[0] = 255
    ignored[1] = -100
    expected = IOU(3)(preds[2:], truth[2:])
    assert IOU(3)(preds, ignored) == expected
    assert IOU(3)(preds, ignored.double()) == expected
    as_bytes = torch.where(ignored < 0, 200, ignored).to(torch.uint8)
    assert IOU(3)(preds, as_bytes) == expected
    # -0.5 is no class either, though its integer part is one
    assert IOU(1)(torch.tensor([1.0, -1.0]), torch.tensor([1.0, -0.5])) == 1.0
    assert torch.isnan(IOU(1)(torch.tensor([1.0]), torch.tensor([torch.nan])))


def test_one_logit_a_pixel():
    preds, truth = make_batch(1)
    expected = sk.jaccard_score(truth.flatten(), (preds > 0).flatten(), average="macro")
    for shaped in (truth, truth.unsqueeze(1), truth.float()):
        assert IOU(1)(preds, shaped).item() == pytest.approx(expected)
    assert IOU(1)(preds.squeeze(1), truth).item() == pytest.approx(expected)
    assert IOU(1)(preds.bfloat16(), truth).item() == pytest.approx(expected)


def test_more_classes_than_a_byte_holds():
    truth = torch.arange(200, dtype=torch.uint8)
    preds = torch.nn.functional.one_hot(truth.long(), 300).float()
    assert IOU(300)(preds, truth) == 1.0


@pytest.mark.parametrize(
    ("num_classes", "left", "right"),
    [
        (3, (2, 5, 4), (2, 4)),  # more channels than classes: an assertion on the device
        (3, (2, 1, 4), (2, 4)),
        (3, (4,), (4,)),
        (3, (2, 3, 4), (4, 2)),
        (1, (2, 3), (3, 2)),
        (1, (2, 2, 3), (2, 3)),
    ],
)
def test_other_shapes_are_refused(num_classes, left, right):
    metric = IOU(num_classes)
    with pytest.raises(MetricError) as caught:
        metric.update(torch.zeros(left), torch.zeros(right))
    assert str(left) in str(caught.value)
    assert not metric.mat.any()
    with pytest.raises(MetricError, match="list and list"):
        metric.update([0.5], [1])


def test_state():
    preds, truth = make_batch(3)
    whole, left, right = IOU(3), IOU(3), IOU(3)
    value = whole(preds, truth)
    left.update(preds[:1], truth[:1])
    right.update(preds[1:], truth[1:])
    left.mat += right.mat
    assert left.compute() == whole.compute() == value
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert twin.compute() == value
    assert not whole.state_dict()
    assert not list(whole.parameters())
    assert whole.half().mat.dtype == torch.int64
    whole.reset()
    assert torch.isnan(whole.compute())
    assert torch.isnan(whole(preds[:0], truth[:0]))


def test_table_is_printed_when_asked(capsys):
    metric = IOU(2, if_print=True)
    metric.update(*make_batch(2))
    metric.compute()
    printed = capsys.readouterr().err
    assert "global correct: 0." in printed
    assert "mean IoU: 0." in printed
    IOU(2).compute()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("num_classes", [1, 4])
def test_nothing_waits_on_the_device(num_classes):
    metric, (preds, truth) = IOU(num_classes), make_batch(num_classes)
    with NoWaits():
        metric.update(preds, truth)
        metric(preds, truth)
        metric.compute()
        metric.reset()
