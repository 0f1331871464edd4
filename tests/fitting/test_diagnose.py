"""What a net, its backward pass or its labels refuse is said with the mend."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hotloop import KerasModel
from hotloop.errors import DataError, GradientError, HotloopError, OptimizerError, ShapeError
from hotloop.fitting.diagnose import explain_missing_float64
from hotloop.fitting.non_finite_errors import explain_non_finite


def fit(net, data, loss_fn=None, **options):
    model = KerasModel(net, loss_fn or nn.CrossEntropyLoss())
    options = {"epochs": 1, "plot": False, "quiet": True, "cpu": True, **options}
    return model.fit(data, **options)


def refused(*arguments, error=ShapeError, **options):
    with pytest.raises(error) as caught:
        fit(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def make_conv():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))


@pytest.mark.parametrize(
    ("make", "shape", "layer"),
    [
        (make_conv, (3, 8, 8), "layer '0' (Conv2d(3, 4"),
        (make_mlp, (4,), "layer '0' (Linear(in"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.int64, torch.float16])
def test_inputs_of_another_dtype_than_the_net(make, shape, layer, dtype):
    inputs, labels = torch.zeros(64, *shape, dtype=dtype), torch.zeros(64, dtype=torch.int64)
    text = refused(make(), (inputs, labels))
    assert f"{str(dtype).removeprefix('torch.')} (32, {', '.join(map(str, shape))}" in text
    assert layer in text
    assert "give the net inputs.float()" in text
    assert ("with net.double()" in text) is (dtype == torch.float64)
    fit(make(), (inputs.float(), labels))
    if dtype == torch.float64:
        fit(make().double(), (inputs, labels))


def test_a_dtype_that_a_kernel_is_not_there_for(small):
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    text = refused(net, (small[0].to(torch.uint8), small[1]))
    assert "layer '0' (BatchNorm1d(4" in text
    assert text.endswith("give the net inputs.float().")


def test_a_net_of_doubles_and_an_embedding_of_floats(small):
    text = refused(make_mlp().double(), small)
    assert "give the net inputs.double(), or make it a net of float32 with net.float()" in text
    net = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 2))
    inputs = small[0].abs().floor()
    assert "an embedding takes integers; give it inputs.long()" in refused(net, (inputs, small[1]))
    fit(net, (inputs.long(), small[1]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compile": True},
        {"gradient_accumulation_steps": 2},
        {"on_non_finite": "skip"},
        {"exact": True},
        {"mixed_precision": "bf16"},
    ],
)
def test_a_loss_without_gradient_says_which_of_both_it_is(small, options):
    frozen = make_mlp().requires_grad_(False)
    text = refused(frozen, small, error=GradientError, **options)
    assert "no parameter of the net requires a gradient" in text

    def loss_fn(preds, labels):
        return (preds.argmax(1) != labels).float().mean()

    text = refused(make_mlp(), small, loss_fn, error=GradientError, **options)
    assert "the loss does not depend on the net's parameters" in text
    assert issubclass(GradientError, RuntimeError)
    assert issubclass(GradientError, HotloopError)


def test_a_step_of_the_users_own_without_gradient(small):
    class Model(KerasModel):
        def step(self, batch):
            return functional.cross_entropy(self.net(batch[0]).detach(), batch[1])

    with pytest.raises(GradientError, match="does not depend on the net's parameters"):
        Model(make_mlp(), None).fit(small, epochs=1, plot=False, quiet=True, cpu=True)


@pytest.mark.parametrize("loss_fn", [nn.HuberLoss(), functional.huber_loss])
def test_labels_that_only_the_backward_pass_refuses(small, loss_fn):
    labels = small[1][:, None]
    text = refused(nn.Linear(4, 1), (small[0], labels), loss_fn)
    assert "has no gradient for labels of this dtype" in text
    assert text.endswith("pass labels.float().")
    fit(nn.Linear(4, 1), (small[0], labels.float()), loss_fn)


class Several(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.layer, self.form = nn.Linear(4, 2), form

    def forward(self, inputs):
        return self.form(self.layer(inputs))


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), functional.cross_entropy])
@pytest.mark.parametrize(
    ("form", "found"),
    [
        (lambda preds: (preds, 1), "preds[0] float32 (32, 2), preds[1] int) and"),
        (lambda preds: {"out": preds}, "preds['out'] float32 (32, 2)) and"),
        (lambda preds: [preds], "preds[0] float32 (32, 2)) and"),
    ],
)
def test_a_net_that_gives_more_than_the_loss_takes(small, loss_fn, form, found):
    text = refused(Several(form), small, loss_fn)
    assert found in text
    picks = text.rpartition("as ")[2].removesuffix(".")
    names = {"CrossEntropyLoss": nn.CrossEntropyLoss, "cross_entropy": functional.cross_entropy}
    fit(Several(form), small, eval(picks, names))


def test_a_net_that_gives_nothing(small):
    text = refused(Several(lambda _: None), small)
    assert "the net returns None" in text
    assert text.endswith("return the predictions from forward.")


def test_a_mistake_in_a_loss_of_the_users_own_stays_as_it_is(small):
    def loss_fn(preds, labels):
        return preds.no_such_method(labels)

    with pytest.raises(AttributeError, match="no_such_method"):
        fit(make_mlp(), small, loss_fn)


@pytest.mark.parametrize("compile_it", [False, True])
def test_a_last_batch_of_one_sample_for_batch_normalisation(small, compile_it):
    data = TensorDataset(small[0][:33], small[1][:33])
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.BatchNorm1d(3)), nn.Linear(3, 2))
    text = refused(net, DataLoader(data, 16), compile=compile_it)
    assert "layer '1.0' normalises over the batch, and one of a single sample (inputs[0]" in text
    assert "pass drop_last=True to the DataLoader, or a batch size that" in text
    fit(net, DataLoader(data, 16, drop_last=True))


def test_text_in_the_inputs_or_labels(small):
    class Words(Dataset):
        def __init__(self, sample):
            self.sample = sample

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return self.sample

    text = refused(make_mlp(), DataLoader(Words(("a word", 1)), 4))
    assert "the batch holds text (inputs[0][0] is 'a word'), and layers take tensors" in text
    text = refused(make_mlp(), DataLoader(Words((torch.zeros(4), "cat")), 4))
    assert "with labels tuple of 4 str (" in text
    assert "it takes labels as one tensor of numbers" in text
    text = refused(make_mlp(), DataLoader(Words(([1.0, 2.0, 3.0, 4.0], 1)), 4))
    assert "layer '0' takes one tensor and was given a list of the batch (inputs[0] float64" in text
    assert ".with_format('torch')" in text


def test_a_class_in_place_of_an_optimizer_or_scheduler(small):
    with pytest.raises(OptimizerError, match=r"is the class Adam, .*Adam\(net.parameters\(\), lr"):
        KerasModel(make_mlp(), nn.CrossEntropyLoss(), optimizer=torch.optim.Adam)
    for wrong, found in [
        (torch.optim.lr_scheduler.StepLR, r"is the class StepLR, .*StepLR\(optimizer, "),
        ("step", r"is a str without step\(\)"),
    ]:
        model = KerasModel(make_mlp(), nn.CrossEntropyLoss(), lr_scheduler=wrong)
        before = model.net[0].weight.detach().clone()
        with pytest.raises(OptimizerError, match=found):
            model.fit(small, epochs=1, plot=False, quiet=True, cpu=True)
        assert torch.equal(before, model.net[0].weight)


def test_float64_on_mps_is_named_with_a_mend():
    words = (
        "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
        "float64. Please use float32 instead."
    )
    found = explain_missing_float64(TypeError(words))
    assert isinstance(found, DataError)
    assert "make them float32 in the data set" in str(found)
    assert explain_missing_float64(TypeError("another")) is None


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 2, 2)])
def test_samples_with_nan_are_counted_whatever_their_shape(shape):
    labels = torch.zeros(shape)
    labels[3] = labels[5] = float("nan")
    text = explain_non_finite(float("nan"), nn.Linear(1, 1), [torch.zeros(8, 1), labels], 1, 1)
    assert "batch[1]" in text
    assert "in 2 of its samples" in text


def test_a_batch_without_samples_is_what_its_loss_is_not_a_number_of():
    batch = [torch.zeros(0, 1), torch.zeros(0)]
    text = explain_non_finite(float("nan"), nn.Linear(1, 1), batch, 1, 1)
    assert "its batch has no samples" in text
