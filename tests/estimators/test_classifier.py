from __future__ import annotations

import io

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from estimator_nets import (
    Convolutions,
    OneDict,
    TwoInputs,
    WithHidden,
    make_dropping,
    make_flat,
    make_lazy,
    make_mlp,
    make_probable,
    make_single,
)
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.metrics import log_loss
from torch import nn

from hotloop.errors import DataError, SettingsError, ShapeError
from hotloop.estimators import NetClassifier


@pytest.fixture
def data():
    """Return float64 (300, 4), and labels of 3 classes."""
    return make_classification(
        300, 4, n_informative=3, n_redundant=0, n_classes=3, class_sep=2.0, random_state=0
    )


@pytest.fixture
def two_classes():
    return make_classification(300, 4, class_sep=2.0, random_state=0)


def make(net=make_mlp, **options):
    settings = {"lr": 1e-2, "epochs": 8, "batch_size": 16, "random_state": 0}
    return NetClassifier(net, **(settings | options))


@pytest.mark.parametrize("dtype", ["U8", object, np.float64, np.int8, bool])
def test_labels_of_any_type(data, dtype):
    inputs, labels = data
    names = np.array(["a", "b", "c"]) if dtype in ("U8", object) else np.array([0, 1, 2])
    named = names[labels].astype(dtype)
    classifier = make().fit(inputs, named)
    assert classifier.score(inputs, named) > 0.85
    assert classifier.classes_.tolist() == np.unique(named).tolist()
    assert classifier.predict(inputs).dtype == classifier.classes_.dtype


def test_probabilities_are_those_of_the_net(data):
    inputs, labels = data
    classifier = make().fit(inputs, labels)
    probabilities = classifier.predict_proba(inputs)
    with torch.no_grad():
        logits = classifier.net_(torch.tensor(inputs, dtype=torch.float32))
    np.testing.assert_allclose(probabilities, logits.softmax(dim=1), atol=1e-6)
    np.testing.assert_array_equal(classifier.predict(inputs), probabilities.argmax(axis=1))
    assert log_loss(labels, probabilities) < 0.6


@pytest.mark.parametrize(
    ("net", "loss_fn"),
    [
        (make_mlp, None),
        (make_single, None),
        (make_flat, None),
        (make_single, nn.BCEWithLogitsLoss()),
        (make_probable, nn.BCELoss()),
    ],
)
def test_two_classes_from_one_number_or_two(two_classes, net, loss_fn):
    inputs, labels = two_classes
    named = np.array(["no", "yes"])[labels]
    classifier = make(net, loss_fn=loss_fn).fit(inputs, named)
    assert classifier.score(inputs, named) > 0.85
    probabilities = classifier.predict_proba(inputs)
    assert probabilities.shape == (300, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert log_loss(named, probabilities) < 0.5


def test_one_number_has_the_loss_of_one_by_hand(two_classes):
    inputs, labels = two_classes
    classifier = make(make_single, validation_share=None, epochs=1).fit(inputs, labels)
    assert isinstance(classifier.model_.loss_fn, nn.BCEWithLogitsLoss)
    logits = torch.as_tensor(classifier.net_(torch.tensor(inputs, dtype=torch.float32)))
    loss = nn.BCEWithLogitsLoss()(logits[:, 0], torch.tensor(labels).float())
    found = classifier.model_.evaluate((inputs, labels[:, None].astype(float)), quiet=True)
    assert found["val_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_images(images):
    inputs, labels = images
    classifier = make(Convolutions, epochs=6)
    classifier.fit(inputs[:500].numpy(), labels[:500].numpy())
    assert classifier.predict_proba(inputs[:7].numpy()).shape == (7, 10)
    predicted = classifier.predict(inputs[:500])  # tensors too
    assert (predicted == labels[:500].numpy()).mean() > 0.3


def test_several_inputs_in_a_tuple_or_dict(two_classes):
    inputs, labels = two_classes
    kinds = np.arange(300) % 3
    both = (inputs, kinds)
    in_dict = {"values": inputs, "kinds": kinds}
    scores = [
        make(net).fit(X, labels).score(X, labels)
        for net, X in ((TwoInputs, both), (TwoInputs, in_dict), (OneDict, in_dict))
    ]
    assert scores[0] == scores[1] > 0.85
    assert scores[2] > 0.85


def test_a_tuple_goes_whole_to_a_net_that_takes_one(two_classes):
    """In prediction too: the last of several arrays is not taken for labels."""

    class OneTuple(OneDict):
        def forward(self, inputs):
            return self.net(*inputs)

    inputs, labels = two_classes
    X = (inputs, np.arange(300) % 3)
    assert make(OneTuple).fit(X, labels).score(X, labels) > 0.85


def test_token_ids_stay_integers_where_they_are_asked_to(two_classes):
    def make_bag(num_outputs):
        return nn.EmbeddingBag(5, num_outputs)

    ids = np.random.default_rng(0).integers(0, 5, (200, 3))
    labels = (ids == 4).any(axis=1)
    assert make(make_bag, dtype=None, lr=0.1).fit(ids, labels).score(ids, labels) > 0.9


def test_a_data_frame_keeps_the_names_of_its_columns(data):
    inputs, labels = data
    frame = pd.DataFrame(inputs, columns=list("abcd"))
    classifier = make().fit(frame, pd.Series(labels))
    assert classifier.feature_names_in_.tolist() == list("abcd")
    assert classifier.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(frame[list("dcba")])


def test_a_fit_with_several_arrays_forgets_the_columns_of_one_before(two_classes):
    inputs, labels = two_classes
    classifier = make().fit(inputs, labels)
    classifier.set_params(net=TwoInputs).fit((inputs, np.arange(300) % 3), labels)
    assert not hasattr(classifier, "n_features_in_")


def test_a_lazy_net(data):
    inputs, labels = data
    assert make(make_lazy).fit(inputs, labels).score(inputs, labels) > 0.85


def test_a_fitted_one_is_saved_and_loaded(data):
    inputs, labels = data
    classifier = make().fit(inputs, labels)
    file = io.BytesIO()
    joblib.dump(classifier, file)
    file.seek(0)
    loaded = joblib.load(file)
    np.testing.assert_array_equal(loaded.predict_proba(inputs), classifier.predict_proba(inputs))
    assert loaded.net_ is loaded.model_.net
    loaded.fit(inputs, labels)  # and trains on


def test_a_clone_has_all_parameters_and_nothing_learned(data):
    classifier = make(
        net__hidden=8, optimizer__weight_decay=0.1, fit__clip_grad_norm=1.0, verbose=0
    ).fit(*data)
    copied = clone(classifier)
    assert copied.get_params() == classifier.get_params()
    assert copied.get_params()["net__hidden"] == 8
    assert not hasattr(copied, "net_")
    copied.set_params(net__hidden=4, lr=0.1, optimizer__weight_decay=0.0)
    assert (copied.net__hidden, copied.lr) == (4, 0.1)
    assert copied.fit(*data).net_[0].out_features == 4
    assert copied.model_.optimizer.param_groups[0]["weight_decay"] == 0.0


def test_parameters_of_the_estimator_are_not_trained(data):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.batches = nn.Buffer(torch.zeros(()))

        def forward(self, preds, labels):
            self.batches += 1
            return nn.functional.cross_entropy(preds, labels)

    loss_fn = Weighted()
    classifier = make(loss_fn=loss_fn, epochs=1).fit(*data)
    assert loss_fn.batches == 0
    assert classifier.model_.loss_fn.batches > 0
    assert classifier.loss_fn is loss_fn


@pytest.mark.parametrize("random_state", [3, np.int64(3), np.random.RandomState(3)])
def test_a_seed_gives_the_same_weights_and_leaves_the_generators(data, random_state):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    state = clone(random_state, safe=False)
    first = make(make_dropping, epochs=2, random_state=random_state).fit(*data)
    torch.rand(7)
    second = make(make_dropping, epochs=2, random_state=state).fit(*data)
    torch.testing.assert_close(first.net_.state_dict(), second.net_.state_dict(), rtol=0, atol=0)
    torch.set_rng_state(before[0])
    make(make_dropping, epochs=2, random_state=4).fit(*data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_without_a_seed_the_generators_of_the_process_give_the_numbers(data):
    nets = []
    for _ in range(2):
        torch.manual_seed(5)
        classifier = make(make_dropping, epochs=2, random_state=None, validation_share=None)
        nets.append(classifier.fit(*data).net_.state_dict())
    torch.testing.assert_close(*nets, rtol=0, atol=0)
    another = make(make_dropping, epochs=2, random_state=None, validation_share=None).fit(*data)
    assert not torch.equal(another.net_[0].weight, nets[0]["0.weight"])


def test_nothing_is_printed_or_written(data, capfd, tmp_path):
    make().fit(*data).predict(data[0])
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    make(verbose=1).fit(*data)
    assert "val_loss" in "".join(capfd.readouterr())
    assert not list(tmp_path.iterdir())


def test_all_else_that_fit_takes(data, tmp_path):
    classifier = make(
        fit__mixed_precision="bf16",
        fit__ckpt_path=tmp_path / "best.safetensors",
        fit__scheduler_interval="epoch",
        lr_scheduler=torch.optim.lr_scheduler.StepLR,
        lr_scheduler__step_size=1,
        lr_scheduler__gamma=0.5,
        epochs=3,
    ).fit(*data)
    assert classifier.model_.accelerator.mixed_precision == "bf16"
    assert (tmp_path / "best.safetensors").is_file()
    assert classifier.history_["lr"].tolist() == [0.01, 0.005, 0.0025]


def test_validation_data_of_ones_own(data):
    inputs, labels = data
    names = np.array(["a", "b", "c"])[labels]
    classifier = make(validation_share=0.5).fit(
        inputs[:200], names[:200], X_val=inputs[200:], y_val=names[200:]
    )
    logits = classifier.net_(torch.tensor(inputs[200:], dtype=torch.float32))
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels[200:])).item()
    assert classifier.history_["val_loss"].min() == pytest.approx(loss, rel=1e-5)


def test_without_validation_all_rows_train(data):
    history = make(validation_share=0).fit(*data).history_
    assert "val_loss" not in history
    assert len(history) == 8


@pytest.mark.parametrize("share", [1.5, -0.1, 1])
def test_a_share_that_is_none_is_refused(data, share):
    with pytest.raises(SettingsError, match=f"validation_share={share} is no share"):
        make(validation_share=share).fit(*data)


def test_a_share_too_small_for_the_classes_is_refused(data):
    inputs, labels = data
    with pytest.raises(SettingsError, match="of 10 rows cannot be held out with all classes"):
        make(validation_share=0.1).fit(inputs[:10], labels[:10])


def test_half_of_the_validation_data_is_refused(data):
    with pytest.raises(SettingsError, match="X_val and y_val go together"):
        make().fit(*data, X_val=data[0])


def test_a_parameter_without_prefix_is_refused():
    with pytest.raises(SettingsError, match=r"no parameter 'hidden'.*net__hidden"):
        NetClassifier(make_mlp, hidden=3)
    with pytest.raises(ValueError, match="Invalid parameter 'hidden'"):
        make().set_params(hidden=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net", nn.Linear(4, 3)),
        ("net", "mlp"),
        ("optimizer", torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1)),
        (
            "lr_scheduler",
            torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(nn.Linear(1, 1).parameters())),
        ),
    ],
)
def test_objects_in_the_place_of_classes_are_refused(data, name, value):
    with pytest.raises(SettingsError, match=f"{name} is a {type(value).__name__}, and each fit"):
        make().set_params(**{name: value}).fit(*data)


def test_a_function_that_returns_no_net_is_refused(data):
    with pytest.raises(SettingsError, match="net=<lambda> returned a int"):
        make(lambda: 3).fit(*data)


def test_a_net_of_other_classes_is_refused(data):
    inputs, labels = data

    def make_five():
        return nn.Linear(4, 5)

    with pytest.raises(ShapeError, match=r"returns \(5,\) a row for the 3 classes"):
        make(make_five).fit(inputs, labels)
    with pytest.raises(ShapeError, match=r"returns \(1,\) a row for the 3 classes"):
        make(make_single).fit(inputs, labels)


def test_a_cross_entropy_of_one_number_is_refused(two_classes):
    with pytest.raises(ShapeError, match="CrossEntropyLoss is always 0"):
        make(make_single, loss_fn=nn.CrossEntropyLoss()).fit(*two_classes)


def test_a_net_that_returns_several_tensors_is_refused(two_classes):
    with pytest.raises(ShapeError, match=r"the net returns .* for 2 rows"):
        make(WithHidden).fit(*two_classes)


def test_one_class_is_refused(data):
    with pytest.raises(DataError, match="y has one class"):
        make().fit(data[0], np.ones(300))


def test_arrays_of_different_lengths_are_refused(data):
    inputs, labels = data
    with pytest.raises(DataError, match="arrays of X have 300, 299 rows"):
        make(TwoInputs).fit((inputs, labels[1:]), labels)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make(TwoInputs).fit((inputs, labels), labels[1:])


def test_sparse_inputs_are_refused(data):
    inputs, labels = data
    with pytest.raises(TypeError, match="dense data is required"):
        make().fit(scipy.sparse.csr_array(inputs), labels)
    with pytest.raises(TypeError, match="dense data is required"):
        make().fit(scipy.sparse.dok_array(inputs), labels)


def test_sample_weights_are_not_taken(data):
    with pytest.raises(TypeError, match="sample_weight"):
        make().fit(*data, sample_weight=np.ones(300))
