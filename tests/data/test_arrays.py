"""Whole arrays as data: plain, nested, in a dict; and what only looks like them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hotloop import KerasModel
from hotloop.data.adapt import as_batches
from hotloop.data.arrays import NestedTensors
from hotloop.data.resident import ResidentSource
from hotloop.errors import DataError, ShapeError

CPU = torch.device("cpu")


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, a, b):
        return self.layer(a - 2 * b)


class Pair(Two):
    """Takes one input, which is two."""

    def forward(self, inputs):
        return super().forward(*inputs)


class Fields(Two):
    """Takes one input, which is a dict."""

    def forward(self, inputs):
        return super().forward(inputs["a"], inputs["b"])


class Samples(Dataset):
    """Reads what form makes of a row number."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 200

    def __getitem__(self, index):
        return self.form(index)


def fit(net, data, *more, **options):
    model = KerasModel(net, nn.CrossEntropyLoss())
    options = {"epochs": 2, "plot": False, "quiet": True, "cpu": True, **options}
    return model.fit(data, *more, **options)


def losses(kind, data, **options):
    torch.manual_seed(0)
    return fit(kind(), data, **options)["train_loss"].tolist()


@pytest.fixture
def parts(small):
    inputs, labels = small
    return inputs, inputs.flip(0) + 1, labels


FORMS = {
    "tuple": (lambda a, b, y: ((a, b), y), [Two, Pair]),
    "list": (lambda a, b, y: [[a, b], y], [Two, Pair]),
    "dict beside labels": (lambda a, b, y: ({"a": a, "b": b}, y), [Two, Fields]),
    "dict": (lambda a, b, y: {"a": a, "b": b, "labels": y}, [Two, Fields]),
}
CASES = [(form, kind) for form, kinds in FORMS.values() for kind in kinds]
IDS = [f"{name} {kind.__name__}" for name, (_, kinds) in FORMS.items() for kind in kinds]


@pytest.mark.parametrize(("form", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("of_numpy", [False, True])
def test_nested_arrays_train_as_their_rows_do(parts, form, kind, of_numpy):
    a, b, y = parts
    expected = losses(kind, DataLoader(Samples(lambda i: form(a[i], b[i], y[i])), 50, shuffle=True))
    arrays = [part.numpy() for part in parts] if of_numpy else parts
    assert losses(kind, form(*arrays), batch_size=50) == expected
    assert losses(kind, form(*arrays), batch_size=50, exact=True) == expected  # of the loader
    assert losses(kind, form(*arrays)) != expected  # 32 samples a batch


@pytest.mark.parametrize(("form", "kind"), CASES, ids=IDS)
def test_predict_and_evaluate_take_them_too(parts, form, kind):
    a, b, y = parts
    model = KerasModel(kind(), nn.CrossEntropyLoss())
    expected = model.net.layer(a - 2 * b)
    assert torch.allclose(model.predict(form(a, b, y), batch_size=50), expected, atol=1e-6)
    loss = model.evaluate(form(a, b, y), quiet=True)["val_loss"]
    assert loss == pytest.approx(nn.functional.cross_entropy(expected, y).item())


def test_inputs_alone_in_a_dict(parts):
    a, b, _ = parts
    model = KerasModel(Two(), nn.CrossEntropyLoss())
    assert model.predict({"a": a, "b": b}).shape == (200, 2)


@pytest.mark.parametrize("name", FORMS)
def test_nested_arrays_are_known_to_be_pure_and_keep_their_form(parts, name):
    source = as_batches(FORMS[name][0](*parts), "train_data", CPU, 50)
    assert type(source.batches.dataset) is NestedTensors
    resident = ResidentSource(source.batches, "train_data", CPU, num_epochs=1)
    for own, read in zip(resident, source, strict=True):
        assert type(own) is type(read)
        own_parts = own.values() if isinstance(own, dict) else own
        read_parts = read.values() if isinstance(read, dict) else read
        for mine, other in zip(own_parts, read_parts, strict=True):
            assert type(mine) is type(other)
            assert str(mine) == str(other)


def test_batches_in_a_tuple_or_list_stay_batches(parts):
    a, b, y = parts
    batches = [(a[:32], y[:32]), (b[:32], y[:32])]
    for data in (batches, tuple(batches)):
        assert as_batches(data, "train_data", CPU).num_batches == 2
        fit(make_mlp(), data)
    dicts = [{"input": a[:8], "labels": y[:8]}] * 3
    assert as_batches(dicts, "train_data", CPU).num_batches == 3
    fit(nn.Linear(4, 2), tuple(dicts))
    by_number = {index: (a[index], y[index]) for index in range(200)}
    assert len(fit(make_mlp(), by_number, batch_size=50)) == 2


@pytest.mark.parametrize("batch_size", [None, 50])
def test_a_dict_that_is_no_data(parts, batch_size):
    a, b, y = parts
    for data, found in [
        ({"a": a, "b": b[:5], "labels": y}, "'b' float32 (5, 4)"),
        ({"a": a, "b": ["text"] * 200, "labels": y}, "'b' list"),
        ({}, "dict of nothing"),
    ]:
        with pytest.raises(DataError, match=re.escape(found)):
            as_batches(data, "train_data", CPU, batch_size)


@pytest.mark.parametrize("as_it_is", [torch.Tensor.numpy, lambda tensor: tensor])
@pytest.mark.parametrize("batch_size", [None, 50])
def test_inputs_and_labels_that_are_no_tuple(small, as_it_is, batch_size):
    inputs, labels = map(as_it_is, small)
    with pytest.raises(DataError, match=r"of as many rows: pass both as one tuple, fit\(\(inputs"):
        fit(make_mlp(), inputs, labels, batch_size=batch_size)
    with pytest.raises(DataError, match=r"gives no batches.*or \(inputs, inputs\) for an auto"):
        fit(make_mlp(), inputs, batch_size=batch_size)
    with pytest.raises(DataError, match=r"\(inputs, inputs\) for an autoencoder"):
        fit(make_mlp(), (inputs,), batch_size=batch_size)


def test_rows_that_a_step_of_the_users_own_reads(small):
    class Model(KerasModel):
        def step(self, batch):
            return self.net(batch).square().mean()

    model = Model(make_mlp(), nn.CrossEntropyLoss())
    rows = small[0].reshape(20, 10, 4)
    options = {"epochs": 1, "plot": False, "quiet": True, "cpu": True}
    assert len(model.fit(list(rows), list(rows), **options)) == 1
    assert len(model.fit(rows.numpy(), rows.numpy(), **options)) == 1
    assert len(model.fit(small[0], small[0], batch_size=50, **options)) == 1


@pytest.mark.parametrize("batch_size", [None, 50])
def test_lists_of_numbers(small, batch_size):
    inputs, labels = small
    for data in [
        (inputs.tolist(), labels.tolist()),
        (inputs.tolist(), labels),
        (inputs, labels.tolist()),
        [inputs.tolist(), labels.tolist()],
    ]:
        with pytest.raises(DataError, match=r"pass \(torch.tensor\(inputs\), torch.tensor\(lab"):
            fit(make_mlp(), data, batch_size=batch_size)
    with pytest.raises(DataError, match="val_data holds lists of numbers"):
        fit(make_mlp(), small, (inputs.tolist(), labels.tolist()), batch_size=batch_size)


@pytest.mark.parametrize(
    ("net", "form", "found"),
    [
        (Two, lambda a, b, y: (a, y), "takes (a, b) and is given 1 of the batch (inputs[0] float"),
        (Two, lambda a, b, y: (a, b, a, y), "takes (a, b) and is given 3 of the batch (inputs[0]"),
        (Pair, lambda a, b, y: (a, b, y), "takes (inputs) and is given 2 of the batch (inputs[0]"),
        (Two, lambda a, b, y: ((a, b, a), y), "takes (a, b) and is given 1 of the batch (inputs["),
    ],
)
def test_a_net_of_another_number_of_inputs(parts, net, form, found):
    with pytest.raises(ShapeError, match=re.escape(f"the net's forward {found}")):
        fit(net(), form(*parts))


def test_a_type_error_inside_of_a_net_stays_as_it_is(small):
    class Mistaken(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs, inputs)

    with pytest.raises(TypeError, match="takes 2 positional arguments but 3"):
        fit(Mistaken(4, 2), small)


def test_an_array_of_float64_becomes_float32_in_a_dict_too(small):
    inputs = small[0].numpy().astype(np.float64)
    source = as_batches({"input": inputs, "labels": small[1].numpy()}, "train_data", CPU)
    batch = next(iter(source))
    assert batch["input"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64


def test_arrays_that_nobody_may_write_to_give_no_warning(recwarn):
    frozen = np.zeros((40, 4), dtype=np.float32)  # as those of pandas' columns
    frozen.flags.writeable = False
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    model.fit((frozen, np.zeros(40, dtype=np.int64)), epochs=1, plot=False, quiet=True, cpu=True)
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_what_a_net_of_one_input_does_not_read_is_named():
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    batch = {"x": torch.zeros(5, 4), "text": ["a"] * 5, "labels": torch.zeros(5).long()}
    model = KerasModel(Net(4, 2), nn.CrossEntropyLoss())
    with pytest.raises(DataError, match=r"forward takes no text \(it takes x\).*leave out what"):
        model.fit([batch], epochs=1, plot=False, quiet=True, cpu=True)
