from __future__ import annotations

import numpy as np
import pytest
import torch
from estimator_nets import make_flat, make_mlp, make_single
from sklearn.datasets import make_regression
from torch import nn

from hotloop.errors import ShapeError
from hotloop.estimators import NetRegressor


@pytest.fixture
def data():
    """Return float64 (300, 4) and (300,), both of about unit variance."""
    inputs, targets = make_regression(300, 4, n_informative=4, noise=1.0, random_state=0)
    return inputs, targets / targets.std()


def make(net=make_mlp, **options):
    settings = {"lr": 1e-2, "epochs": 15, "batch_size": 16, "random_state": 0}
    return NetRegressor(net, **(settings | options))


@pytest.mark.parametrize("net", [make_mlp, make_single, make_flat])
@pytest.mark.parametrize("column", [False, True])
def test_one_target_of_either_shape(data, net, column):
    """An output (n, 1) and targets (n,) would be a loss of all pairs."""
    inputs, targets = data
    targets = targets[:, None] if column else targets
    regressor = make(net).fit(inputs, targets)
    assert regressor.score(inputs, targets) > 0.9
    assert regressor.predict(inputs).shape == targets.shape
    assert regressor.history_["val_loss"].min() < 0.1


def test_several_targets(data):
    inputs, targets = data
    both = np.stack([targets, inputs[:, 0]], axis=1)
    regressor = make().fit(inputs, both)
    assert regressor.net_[2].out_features == 2
    assert regressor.score(inputs, both) > 0.9
    assert regressor.predict(inputs).shape == (300, 2)


def test_integer_targets(data):
    inputs, targets = data
    counts = np.round(targets * 10).astype(int)
    assert make(epochs=30).fit(inputs, counts).score(inputs, counts) > 0.9


def test_a_loss_of_ones_own_may_take_another_shape(data):
    """Quantiles: three numbers a row for one target."""
    inputs, targets = data
    shares = torch.tensor([0.1, 0.5, 0.9])

    def pinball(preds, labels):
        errors = labels[:, None] - preds
        return torch.maximum(shares * errors, (shares - 1) * errors).mean()

    def make_quantiles(num_features):
        return make_mlp(num_features, 3)

    predicted = (
        make(make_quantiles, loss_fn=pinball, epochs=30).fit(inputs, targets).predict(inputs)
    )
    assert predicted.shape == (300, 3)
    covered = (targets[:, None] < predicted).mean(axis=0)
    np.testing.assert_allclose(covered, shares, atol=0.15)


@pytest.mark.parametrize("loss_fn", [None, nn.L1Loss()])
def test_an_output_of_another_shape_is_refused(data, loss_fn):
    """In a batch of three rows torch would make pairs of them."""

    def make_three():
        return nn.Linear(4, 3)

    with pytest.raises(ShapeError, match=r"returns \(3,\) a row for targets of shape \(300,\)"):
        make(make_three, loss_fn=loss_fn).fit(*data)


def test_validation_data_of_ones_own(data):
    inputs, targets = data
    regressor = make().fit(inputs[:200], targets[:200], inputs[200:], targets[200:])
    errors = regressor.predict(inputs[200:]) - targets[200:]
    assert regressor.history_["val_loss"].min() == pytest.approx((errors**2).mean(), rel=1e-4)
