"""The binary metrics and IOU against scikit-learn, also on degenerate input."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from hotloop.errors import MetricError
from hotloop.metrics import AUC, IOU, KS, Accuracy, Precision, Recall

REFERENCES = {
    Accuracy: lambda y, p: sk.accuracy_score(y, p >= 0.5),
    Precision: lambda y, p: sk.precision_score(y, p >= 0.5, zero_division=0),
    Recall: lambda y, p: sk.recall_score(y, p >= 0.5, zero_division=0),
    AUC: sk.roc_auc_score,
    KS: lambda y, p: np.max(np.abs(np.subtract(*sk.roc_curve(y, p)[:2]))),
}
# few distinct scores: ties everywhere
samples = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(samples)
@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("from_logits", [True, False])
def test_against_scikit_learn(kind, from_logits, pairs):
    truth = torch.tensor([label for label, _ in pairs])
    probabilities = torch.tensor([score for _, score in pairs], dtype=torch.float64) / 8
    preds = torch.logit(probabilities.clamp(1e-6, 1 - 1e-6)) if from_logits else probabilities
    metric = kind(from_logits=from_logits)
    cut = len(pairs) // 2
    for part in (slice(0, cut), slice(cut, None)):
        metric.update(preds[part], truth[part])
    value = metric.compute().item()
    if kind in (AUC, KS) and truth.unique().numel() < 2:
        assert np.isnan(value)
    else:
        expected = REFERENCES[kind](truth.numpy(), probabilities.numpy())
        assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", REFERENCES)
def test_batch_value_reset_copy_and_empty(kind):
    generator = torch.Generator().manual_seed(0)
    preds, truth = torch.randn(50, generator=generator), torch.arange(50) % 2
    metric = kind()
    empty = metric.compute()
    assert torch.isnan(empty) if kind in (AUC, KS, Accuracy) else empty == 0
    batch_value = metric(preds, truth)
    torch.testing.assert_close(batch_value, metric.compute())
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert twin.compute() == metric.compute()
    metric(-preds, truth)
    metric.reset()
    metric(preds[:, None], truth[:, None].float())  # (n, 1) as a net gives it
    torch.testing.assert_close(batch_value, metric.compute())
    metric.reset()
    metric(preds.bfloat16(), truth)
    assert abs(metric.compute() - batch_value) < 0.1
    assert not list(metric.parameters())
    with pytest.raises(MetricError, match=r"\(50,\).*\(49,\)"):
        metric(preds, truth[1:])


@pytest.mark.parametrize("kind", [AUC, KS])
def test_bins_come_close_in_constant_memory(kind):
    generator = torch.Generator().manual_seed(0)
    preds = torch.randn(4000, generator=generator)
    truth = (preds + torch.randn(4000, generator=generator) > 0).long()
    exact, binned = kind(), kind(num_bins=10001)
    for part in range(0, 4000, 500):
        exact.update(preds[part : part + 500], truth[part : part + 500])
        binned.update(preds[part : part + 500], truth[part : part + 500])
    assert binned.compute().item() == pytest.approx(exact.compute().item(), abs=1e-3)
    assert not binned._scores


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_iou_against_scikit_learn(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    size = max(num_classes, 2)
    truth = torch.randint(-1, size, (3, 8, 8), generator=generator)  # -1 is ignored
    shape = (3, num_classes, 8, 8) if num_classes > 1 else (3, 8, 8)
    preds = torch.randn(shape, generator=generator)
    metric = IOU(num_classes)
    batch_value = metric(preds, truth)
    found = preds.argmax(1) if num_classes > 1 else (preds > 0).long()
    known = truth >= 0
    expected = sk.jaccard_score(truth[known].numpy(), found[known].numpy(), average="macro")
    assert batch_value.item() == pytest.approx(expected)
    assert metric.compute().item() == pytest.approx(expected)
    assert "mean IoU" in str(metric)
    metric.reset()
    assert torch.isnan(metric.compute())


def test_iou_leaves_out_classes_that_are_nowhere():
    metric = IOU(4)
    preds = torch.eye(4)[torch.tensor([[0, 1, 1]])].permute(0, 2, 1)
    assert metric(preds, torch.tensor([[0, 1, 0]])).item() == pytest.approx((0.5 + 0.5) / 2)
    with pytest.raises(MetricError, match="number of pixels"):
        metric(preds, torch.zeros(1, 4))
