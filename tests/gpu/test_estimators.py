"""scikit-learn's estimators on the device: fitted there, pickled, cloned, searched."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from estimator_nets import make_mlp

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import make_classification  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402

from hotloop.estimators import NetClassifier  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]


@pytest.fixture
def data():
    return make_classification(600, 6, n_informative=4, class_sep=2.0, random_state=1)


@pytest.fixture
def classifier():
    return NetClassifier(make_mlp, lr=1e-2, epochs=10, batch_size=32, random_state=0)


def test_what_is_pickled_predicts_the_same(data, classifier):
    inputs, labels = data
    classifier.fit(inputs, labels)
    assert classifier.score(inputs, labels) > 0.85
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_allclose(
        again.predict_proba(inputs), classifier.predict_proba(inputs), rtol=1e-5, atol=1e-6
    )


def test_two_fits_of_one_seed_are_the_same(data, classifier):
    first = classifier.fit(*data).predict_proba(data[0])
    second = clone(classifier).fit(*data).predict_proba(data[0])
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_folds_and_searches(data, classifier):
    assert cross_val_score(classifier, *data, cv=3).min() > 0.8
    search = GridSearchCV(classifier, {"lr": [1e-4, 1e-2]}, cv=2).fit(*data)
    assert search.best_params_ == {"lr": 1e-2}
