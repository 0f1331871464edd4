"""The numbers are those of ``KerasModel.fit``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimator_nets import make_dropping, make_single
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from torch import nn

from hotloop import KerasModel
from hotloop.estimators import NetClassifier, NetRegressor


@pytest.fixture
def data():
    return make_classification(300, 6, n_informative=4, random_state=1)


@pytest.mark.parametrize("share", [0.2, None])
def test_a_classifiers_weights_are_those_of_a_fit_by_hand(data, share):
    inputs, labels = data
    classifier = NetClassifier(
        make_dropping, lr=1e-2, epochs=4, batch_size=32, validation_share=share, random_state=7
    ).fit(inputs, labels)

    torch.manual_seed(7)
    net = make_dropping(6, 2)
    train, val = (inputs, labels), None
    if share:
        *parts, train_labels, val_labels = train_test_split(
            inputs, labels, test_size=share, stratify=labels, random_state=7
        )
        train, val = (parts[0], train_labels), (parts[1], val_labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
    history = model.fit(train, val, epochs=4, batch_size=32, quiet=True, plot=False)

    torch.testing.assert_close(classifier.net_.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert classifier.history_.equals(history)
    expected = model.predict(inputs, batch_size=32).softmax(dim=1).numpy()
    np.testing.assert_array_equal(classifier.predict_proba(inputs), expected)


def test_a_regressors_weights_are_those_of_a_fit_by_hand(data):
    inputs, targets = data
    regressor = NetRegressor(
        make_single, lr=1e-2, epochs=4, batch_size=32, validation_share=0.2, random_state=7
    ).fit(inputs, targets)

    torch.manual_seed(7)
    net = make_single(6)
    x_train, x_val, y_train, y_val = train_test_split(
        inputs, targets[:, None].astype(float), test_size=0.2, random_state=7
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    model = KerasModel(net, nn.MSELoss(), None, optimizer)
    model.fit((x_train, y_train), (x_val, y_val), epochs=4, batch_size=32, quiet=True, plot=False)
    torch.testing.assert_close(regressor.net_.state_dict(), net.state_dict(), rtol=0, atol=0)
    np.testing.assert_array_equal(regressor.predict(inputs), model.predict(inputs)[:, 0])
