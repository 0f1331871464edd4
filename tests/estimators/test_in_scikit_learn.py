"""Searches, folds and pipelines."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from estimator_nets import make_mlp
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from hotloop import Callback
from hotloop.estimators import NetClassifier


@pytest.fixture
def data():
    return make_classification(240, 5, class_sep=2.0, random_state=0)


def make(**options):
    settings = {"lr": 1e-2, "epochs": 4, "batch_size": 16, "random_state": 0}
    return NetClassifier(make_mlp, **(settings | options))


def test_a_search_in_two_processes_finds_what_one_does(data):
    grid = {"lr": [1e-5, 1e-2], "net__hidden": [4, 8]}
    searches = [
        GridSearchCV(make(), grid, cv=2, n_jobs=num, error_score="raise").fit(*data)
        for num in (1, 2)
    ]
    one, two = (search.cv_results_["mean_test_score"] for search in searches)
    np.testing.assert_array_equal(one, two)
    assert searches[1].best_params_["lr"] == 1e-2
    assert searches[1].best_score_ > 0.85


def test_a_pipeline_and_its_parameters(data):
    inputs, labels = data
    pipeline = Pipeline([("scale", StandardScaler()), ("net", make())])
    search = GridSearchCV(pipeline, {"net__net__hidden": [4, 8]}, cv=2, error_score="raise")
    assert search.fit(inputs * 1000 + 5, labels).score(inputs * 1000 + 5, labels) > 0.85


def test_the_net_is_told_how_many_columns_the_steps_before_make(data):
    inputs, labels = data
    frame = pd.DataFrame({"kind": np.array(["a", "b", "c"])[np.arange(240) % 3], "x": inputs[:, 0]})
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough")
    pipeline = make_pipeline(encode, make()).fit(frame, labels)
    assert pipeline[-1].net_[0].in_features == 4


def test_folds(data):
    scores = cross_val_score(make(), *data, cv=3, error_score="raise")
    assert scores.min() > 0.8
    probabilities = cross_val_predict(make(), *data, cv=3, method="predict_proba")
    assert probabilities.shape == (240, 2)


class Interrupts(Callback):
    """Does what Ctrl-C does, in the second epoch."""

    def on_validation_epoch_end(self, model):
        if len(model.history["epoch"]) == 2:
            raise KeyboardInterrupt


def test_an_interrupt_ends_a_search_and_leaves_what_was_trained(data):
    classifier = make(fit__callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(*data)
    assert len(classifier.history_) == 2
    assert classifier.predict(data[0]).shape == (240,)
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(make(fit__callbacks=[Interrupts()]), {"lr": [1e-3, 1e-2]}, cv=2).fit(*data)


class Stops(Callback):
    def on_validation_epoch_end(self, model):
        model.stop_training = True


@pytest.mark.parametrize("options", [{"patience": 1, "lr": 0.0}, {"fit__callbacks": [Stops()]}])
def test_a_fit_that_stops_early_was_not_interrupted(data, options):
    assert len(make(**options).fit(*data).history_) < 3


def test_a_missing_scikit_learn_is_named():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import hotloop\n"
        "from hotloop import *\n"
        "from hotloop.estimators import NetClassifier"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "MissingExtraError: hotloop.estimators needs the package 'sklearn'" in ended.stderr
    assert "pip install 'hotloop[sklearn]'" in ended.stderr
