"""AUC and KS: torchkeras' bins, ties, NaN, nothing seen, moves, sums, and no waits."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_waits import NoWaits
from sklearn import metrics as sk

from hotloop.errors import MetricError, SettingsError
from hotloop.metrics import AUC, KS

KINDS = (AUC, KS)


def reference(kind, truth, scores):
    if kind is AUC:
        return sk.roc_auc_score(truth, scores)
    false_rates, true_rates, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    return np.abs(true_rates - false_rates).max()


def torchkeras_value(kind, preds, truth):
    """Compute as torchkeras 4.0.5 does, from 10,001 bins of the sigmoid."""
    bins = (10000 * preds.sigmoid()).int().numpy()
    positives = np.bincount(bins[truth == 1], minlength=10001) / (truth == 1).sum()
    negatives = np.bincount(bins[truth == 0], minlength=10001) / (truth == 0).sum()
    if kind is KS:
        return np.abs(positives.cumsum() - negatives.cumsum()).max()
    from_above = positives[::-1].cumsum() - positives[::-1] / 2
    return (from_above * negatives[::-1]).sum()


def make_batch(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    preds = torch.randn(size, generator=generator)
    truth = (preds + torch.randn(size, generator=generator) > 0).long()
    return preds, truth


@pytest.mark.parametrize("kind", KINDS)
def test_torchkeras_bins(kind):
    preds, truth = make_batch(3000)
    metric = kind(num_bins=10001)
    expected = torchkeras_value(kind, preds, truth.numpy())
    assert metric(preds, truth).item() == pytest.approx(expected, abs=1e-6)
    for part in range(0, 3000, 700):  # the same again: rates stay
        metric.update(preds[part : part + 700], truth[part : part + 700])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    assert kind()(preds, truth).item() == pytest.approx(expected, abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 1), st.floats(-50, 50, width=32)), min_size=2, max_size=40
    ),
    cut=st.integers(0, 40),
)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_on_any_scores_and_any_cut(kind, pairs, cut):
    truth = torch.tensor([label for label, _ in pairs])
    scores = torch.tensor([score for _, score in pairs])
    metric = kind()
    metric.update(scores[:cut], truth[:cut])
    metric.update(scores[cut:], truth[cut:])
    if truth.unique().numel() == 2:
        expected = reference(kind, truth.numpy(), scores.numpy())
        assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    else:
        assert torch.isnan(metric.compute())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bins", [None, 2, 101])
def test_all_tied_is_chance(kind, num_bins):
    metric = kind(num_bins=num_bins)
    value = metric(torch.full((6,), 0.3), torch.tensor([0, 1, 0, 1, 1, 1]))
    assert value == (0.5 if kind is AUC else 0.0)
    assert metric.compute() == value


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_scores_are_ordered(kind):
    scores = torch.tensor([torch.inf, 0.0, -torch.inf])
    for num_bins in (None, 101):
        assert kind(num_bins=num_bins)(scores, torch.tensor([1, 0, 0])) == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bins", [None, 101])
def test_undefined_is_nan(kind, num_bins):
    one_class, empty = torch.ones(3), torch.zeros(0)
    metric = kind(num_bins=num_bins)
    assert torch.isnan(metric.compute())
    for preds, truth in (
        (torch.randn(3), one_class),
        (torch.randn(3), 1 - one_class),
        (torch.randn(1), torch.ones(1)),
        (empty, empty),
        (torch.tensor([0.1, torch.nan, 0.9]), torch.tensor([0, 1, 1])),
    ):
        assert torch.isnan(metric(preds, truth))
    metric.reset()
    metric.update(empty, empty)
    assert torch.isnan(metric.compute())
    metric.update(torch.tensor([0.1, torch.nan]), torch.tensor([0, 1]))
    metric.update(torch.tensor([0.2, 0.3]), torch.tensor([0, 1]))
    assert torch.isnan(metric.compute())  # not a number from the scores that are left
    metric.reset()
    metric.update(torch.tensor([0.2, 0.3]), torch.tensor([0, 1]))
    assert metric.compute() == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_in_bins(kind):
    preds, truth = make_batch(500)
    from_logits = kind(num_bins=1001)(preds, truth)
    assert kind(from_logits=False, num_bins=1001)(preds.sigmoid(), truth) == from_logits
    assert kind(from_logits=False)(preds.sigmoid(), truth) == pytest.approx(
        kind()(preds, truth).item(), abs=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kept_scores_are_the_metrics_own(kind):
    preds, truth = make_batch(30)
    preds.requires_grad_()
    metric = kind()
    value = metric(preds, truth)
    with torch.no_grad():
        preds.zero_()
    truth.zero_()
    assert metric.compute() == value
    assert not metric.compute().requires_grad
    twins = (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)))
    metric.reset()
    for twin in twins:
        assert twin.compute() == value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bins", [None, 11])
def test_state_moves_with_the_module(kind, num_bins):
    metric = kind(num_bins=num_bins)
    metric.update(*make_batch(10))
    before = metric.compute()
    assert metric.double().compute() == before  # counts and scores keep their dtypes
    assert not list(metric.parameters())
    assert not metric.state_dict()
    assert metric.to("meta").compute().device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_bins_add_up_over_processes(kind):
    preds, truth = make_batch(300)
    whole, left, right = (kind(num_bins=101) for _ in range(3))
    whole.update(preds, truth)
    left.update(preds[:100], truth[:100])
    right.update(preds[100:], truth[100:])
    for name, counts in left.named_buffers():
        counts += getattr(right, name)
    assert left.compute() == whole.compute()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(kind, dtype):
    preds, truth = make_batch(200)
    expected = reference(kind, truth.numpy(), preds.to(dtype).double().numpy())
    value = kind()(preds.to(dtype), truth)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("num_bins", [0, 1, -3, 2.5, "many"])
def test_bins_that_cannot_be(num_bins):
    with pytest.raises(SettingsError, match="num_bins"):
        AUC(num_bins=num_bins)


def test_other_shapes_are_refused():
    with pytest.raises(MetricError, match=r"\(4, 2\).*\(4,\)"):
        KS().update(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bins", [None, 101])
def test_nothing_waits_on_the_device(kind, num_bins):
    metric, (preds, truth) = kind(num_bins=num_bins), make_batch(20)
    with NoWaits():
        metric.update(preds, truth)
        metric(preds, truth)
        metric.compute()
        metric.reset()
