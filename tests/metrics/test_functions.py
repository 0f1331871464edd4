"""A function as a metric sees the whole epoch."""

from __future__ import annotations

import functools

import pytest
import torch
from builders import make_mlp
from sklearn.metrics import fbeta_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.errors import MetricError
from hotloop.metrics.functions import FunctionMetric


def f_score(preds, labels, beta=1.0):
    return fbeta_score(labels, preds.argmax(dim=1), beta=beta)


def error_rates(preds, labels):
    wrong = (preds.argmax(dim=1) != labels).float()
    return {"mean": wrong.mean(), "of_first": wrong[labels == 0].mean()}


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"mixed_precision": "bf16"}])
def test_it_is_given_all_predictions_of_the_epoch(small, options):
    torch.manual_seed(0)
    net = make_mlp()
    metrics = {"f1": f_score, "f2": functools.partial(f_score, beta=2.0), "error": error_rates}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, torch.optim.Adam(net.parameters()))
    inputs, labels = small
    train = DataLoader(TensorDataset(inputs, labels), 48, shuffle=True)
    val = DataLoader(TensorDataset(inputs[:70], labels[:70]), 32)
    history = model.fit(
        train, val, epochs=3, monitor="val_f1", mode="max", plot=False, quiet=True, **options
    )
    assert history["val_f1"].iloc[-1] > history["val_f1"].iloc[0]
    found = model.evaluate(val, quiet=True)
    preds = model.predict(inputs[:70])
    assert found["val_f1"] == pytest.approx(f_score(preds, labels[:70]))
    assert found["val_f2"] == pytest.approx(f_score(preds, labels[:70], 2.0))
    rates = error_rates(preds, labels[:70])
    assert found["val_error_mean"] == pytest.approx(float(rates["mean"]))
    assert found["val_error_of_first"] == pytest.approx(float(rates["of_first"]))


def test_batches_are_forgotten_between_epochs():
    metric = FunctionMetric(lambda preds, labels: float(len(preds)))
    assert metric(torch.zeros(3, 2), torch.zeros(3)) == 3.0
    metric.update(torch.zeros(4, 2), torch.zeros(4))
    assert metric.compute() == 7.0
    metric.reset()
    assert metric.compute() != metric.compute()  # NaN


def test_it_takes_one_tensor_each():
    metric = FunctionMetric(lambda preds, labels: 0.0)
    with pytest.raises(MetricError, match="one tensor of predictions, and the step gave"):
        metric.update({"a": torch.zeros(3)}, torch.zeros(3))
