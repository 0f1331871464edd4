"""A loss that refuses its labels says how to mend them, and what is mended so trains."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from hotloop import KerasModel
from hotloop.errors import LabelError, ShapeError

CLASSES = [nn.CrossEntropyLoss(), nn.NLLLoss(), functional.cross_entropy, functional.nll_loss]
TWO_CLASSES = [
    nn.BCELoss(),
    nn.BCEWithLogitsLoss(),
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
]
NUMBERS = [
    nn.MSELoss(),
    nn.L1Loss(),
    nn.SmoothL1Loss(),
    nn.HuberLoss(),
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
]


def name_of(loss_fn):
    return getattr(loss_fn, "__name__", type(loss_fn).__name__)


def column():
    """Return a net that gives (batch, 1), in 0..1."""
    return nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())


def flat():
    """Return a net that gives (batch,), in 0..1."""
    return nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0))


class Tagger(nn.Module):
    """Gives classes for each token: (batch, tokens, classes), or with the classes second."""

    def __init__(self, classes_second=False):
        super().__init__()
        self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.classes_second = classes_second

    def forward(self, tokens):
        preds = self.head(self.tokens(tokens))
        return preds.transpose(1, 2) if self.classes_second else preds


class Segmenter(Tagger):
    """Gives classes for each pixel: (batch, height, width, classes), or with the classes second."""

    def forward(self, tokens):
        preds = super().forward(tokens).reshape(len(tokens), 3, 3, 20)
        return preds.movedim(-1, 1).contiguous() if self.classes_second else preds


def fit(net, loss_fn, inputs, labels, **options):
    model = KerasModel(net, loss_fn)
    options = {"epochs": 1, "plot": False, "quiet": True, "cpu": True, **options}
    return model.fit((inputs, labels), **options)


def refused(net, loss_fn, inputs, labels, error=ShapeError):
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(error) as caught:
        fit(net, loss_fn, inputs, labels)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert name_of(loss_fn) in text
    assert all(map(torch.equal, before, net.parameters()))
    return text


@pytest.mark.parametrize("loss_fn", CLASSES, ids=name_of)
@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (lambda labels: labels.float(), "labels.long()"),
        (lambda labels: labels.int(), "labels.long()"),
        (lambda labels: labels.bool(), "labels.long()"),
        (lambda labels: labels[:, None], "labels.squeeze(1)"),
        (lambda labels: labels[:, None].float(), "labels.squeeze(1).long()"),
        (lambda labels: functional.one_hot(labels, 2), "labels.argmax(1)"),
    ],
)
def test_class_indices(small, loss_fn, spoil, mend):
    inputs, labels = small
    spoilt = spoil(labels)
    text = refused(nn.Linear(4, 2), loss_fn, inputs, spoilt)
    assert "takes class indices as int64 (32,)" in text
    assert f"pass {mend}" in text
    mended = eval(mend, {"labels": spoilt})
    assert torch.equal(mended, labels)
    fit(nn.Linear(4, 2), loss_fn, inputs, mended)


@pytest.mark.parametrize("loss_fn", TWO_CLASSES, ids=name_of)
@pytest.mark.parametrize(
    ("net", "spoil", "mend"),
    [
        (column, lambda labels: labels.float(), "labels[:, None]"),
        (column, lambda labels: labels, "labels[:, None].float()"),
        (flat, lambda labels: labels.float()[:, None], "labels.squeeze(1)"),
        (column, lambda labels: labels[:, None], "labels.float()"),
        (column, lambda labels: labels[:, None].bool(), "labels.float()"),
    ],
)
def test_labels_of_two_classes(small, loss_fn, net, spoil, mend):
    spoilt = spoil(small[1])
    text = refused(net(), loss_fn, small[0], spoilt)
    assert f"pass {mend}" in text
    fit(net(), loss_fn, small[0], eval(mend, {"labels": spoilt}))


@pytest.mark.parametrize("loss_fn", TWO_CLASSES, ids=name_of)
def test_two_outputs_for_two_classes(small, loss_fn):
    net = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid())
    text = refused(net, loss_fn, *small)
    assert "1 output and pass labels[:, None].float(), or take nn.CrossEntropyLoss" in text


@pytest.mark.parametrize("loss_fn", [TWO_CLASSES[0], TWO_CLASSES[2]], ids=name_of)
def test_probabilities_outside_of_0_to_1_say_which_they_are(small, loss_fn):
    inputs, labels = small[0], small[1].float()[:, None]
    net = nn.Linear(4, 1)
    text = refused(net, loss_fn, inputs, labels)
    assert "the predictions go from -" in text
    assert "end the net with nn.Sigmoid(), or take nn.BCEWithLogitsLoss" in text
    text = refused(column(), loss_fn, inputs, labels * 3)
    assert "the labels go from 0 to 3 and must lie in 0..1" in text


@pytest.mark.parametrize("compile_it", [False, True])
@pytest.mark.parametrize("loss_fn", NUMBERS, ids=name_of)
def test_a_column_against_a_row_is_no_pair(small, loss_fn, compile_it):
    inputs, numbers = small[0], small[0].sum(dim=1)
    options = {"compile": compile_it}
    text = refused(column(), loss_fn, inputs, numbers)
    assert "float32 (32, 1)" in text
    assert "labels float32 (32,), as (32, 32)" in text
    assert "pass labels[:, None], or squeeze the net's output with .squeeze(1)" in text
    fit(column(), loss_fn, inputs, numbers[:, None], **options)
    text = refused(flat(), loss_fn, inputs, numbers[:, None])
    assert "pass labels.squeeze(1), or leave the net's output (batch, 1)" in text
    fit(flat(), loss_fn, inputs, numbers, **options)


def test_a_column_against_a_row_is_refused_in_validation_too(small):
    inputs, numbers = small[0], small[0].sum(dim=1)
    model = KerasModel(column(), nn.MSELoss())
    with pytest.raises(ShapeError, match=r"pass labels\[:, None\]"):
        model.evaluate((inputs, numbers), quiet=True)


def test_shapes_that_torch_compares_in_pairs_are_left_alone(small):
    inputs, numbers = small[0], small[0].sum(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of shapes that differ
        fit(nn.Linear(4, 3), nn.MSELoss(), inputs, numbers[:, None])  # one label for all outputs
        fit(column(), nn.MSELoss(), inputs, numbers[:, None, None].expand(-1, 1, 5))
        fit(column(), lambda preds, labels: functional.mse_loss(preds, labels), inputs, numbers)

        class Mine(nn.MSELoss):
            def forward(self, preds, labels):
                return super().forward(preds, labels)

        fit(column(), Mine(), inputs, numbers)
        fit(column(), nn.MSELoss(), inputs[:1], numbers[:1])  # one sample is compared with itself


@pytest.mark.parametrize("loss_fn", CLASSES, ids=name_of)
@pytest.mark.parametrize(
    ("net", "shape", "mend"),
    [
        (Tagger, (9,), "preds.transpose(1, 2)"),
        (Segmenter, (3, 3), "preds.movedim(-1, 1).contiguous()"),
    ],
)
@pytest.mark.parametrize("num_classes", [5, 20])  # fewer than there are tokens, or all
def test_classes_that_are_not_the_second_dimension(loss_fn, net, shape, mend, num_classes):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (64, 9), generator=generator)
    labels = torch.randint(num_classes, (64, *shape), generator=generator)
    text = refused(net(), loss_fn, tokens, labels)
    assert "must be the predictions' second dimension and seem to be their last, of 20" in text
    assert f"return {mend} from the net" in text
    fit(net(classes_second=True), loss_fn, tokens, labels)


def test_classes_elsewhere_in_a_later_batch():
    tokens = torch.zeros(8, 20, dtype=torch.long)  # as many tokens as classes: either may be which
    batches = [(tokens, tokens), (tokens[:, :9], tokens[:, :9])]
    model = KerasModel(Tagger(), nn.CrossEntropyLoss())
    with pytest.raises(ShapeError, match=r"return preds.transpose\(1, 2\) from the net"):
        model.fit(batches, epochs=1, plot=False, quiet=True, cpu=True)


def test_one_output_for_two_classes(small):
    with pytest.raises(LabelError, match=r"gives 1 class .*, or take BCEWithLogitsLoss and"):
        fit(nn.Linear(4, 1), nn.CrossEntropyLoss(), *small)


def test_predictions_of_another_number_of_samples(small):
    class Halves(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs.reshape(-1, 8))

    text = refused(Halves(8, 2), nn.CrossEntropyLoss(), *small)
    assert "predictions of 16 samples for labels of 32" in text


def test_a_loss_of_the_users_own_is_told_shapes_and_torchs_words(small):
    def my_loss(preds, labels):
        return functional.binary_cross_entropy_with_logits(preds, labels)

    text = refused(nn.Linear(4, 2), my_loss, *small)
    assert "Target size (torch.Size([32])) must be the same as input size" in text
    assert "give it predictions and labels of the shapes and dtypes that it takes" in text
