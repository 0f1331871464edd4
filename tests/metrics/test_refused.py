"""A metric that refuses what it is given says what to give it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchmetrics import Accuracy, MeanSquaredError

from hotloop import KerasModel
from hotloop.errors import MetricError


class Net(nn.Module):
    """Gives its outputs in some form."""

    def __init__(self, num_outputs=2, form=lambda outputs: outputs):
        super().__init__()
        self.layer, self.form = nn.Linear(4, num_outputs), form

    def forward(self, inputs):
        return self.form(self.layer(inputs))


class Mine(nn.Module):
    """A metric of the user's own, that may hold a mistake."""

    def __init__(self, mistaken=False):
        super().__init__()
        self.mistaken, self.total = mistaken, 0.0

    def forward(self, preds, labels):
        self.total += (preds.argmax(1) == labels).sum()
        if self.mistaken:
            self.no_such_attribute += 1
        return self.total

    def compute(self):
        return self.total

    def reset(self):
        self.total = 0.0


def fit(net, metric, inputs, labels, loss_fn, **options):
    model = KerasModel(net, loss_fn, {"mine": metric})
    return model.fit((inputs, labels), epochs=1, plot=False, quiet=True, cpu=True, **options)


def accuracy(num_classes=2):
    return Accuracy(task="multiclass", num_classes=num_classes)


def flat(preds, labels):
    return functional.mse_loss(preds.flatten(), labels.flatten().float())


def classes(preds, labels):
    return functional.cross_entropy(preds, labels.flatten())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("num_outputs", "metric", "form", "loss_fn", "mend"),
    [
        (1, MeanSquaredError, lambda labels: labels.float(), flat, "pass labels[:, None]"),
        (1, lambda: Accuracy(task="binary"), lambda labels: labels, flat, "with .squeeze(1), or"),
        (2, accuracy, lambda labels: labels[:, None], classes, "pass labels.squeeze(1)"),
        (2, lambda: accuracy(7), lambda labels: labels, classes, "make it with num_classes=2, or"),
    ],
)
def test_shapes(small, num_outputs, metric, form, loss_fn, mend, exact):
    with pytest.raises(MetricError) as caught:
        fit(Net(num_outputs), metric(), small[0], form(small[1]), loss_fn, exact=exact)
    text = str(caught.value)
    assert "metric 'mine' (" in text
    assert f"preds float32 (32, {num_outputs}) and labels" in text
    assert mend in text.rpartition("): ")[2]
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("metric", [accuracy, Mine])
@pytest.mark.parametrize(
    ("form", "key", "found"),
    [
        (lambda outputs: {"out": outputs}, "out", "preds['out'] float32 (32, 2) and labels"),
        (lambda outputs: (outputs, outputs), 0, "preds[0] float32 (32, 2), preds[1] float32"),
    ],
)
def test_predictions_that_are_no_tensor(small, metric, form, key, found, exact):
    def loss_fn(preds, labels):
        return functional.cross_entropy(preds[key], labels)

    class Picks(Mine):
        def forward(self, preds, labels):
            return super().forward(preds[key], labels)

    with pytest.raises(MetricError) as caught:
        fit(Net(form=form), metric(), *small, loss_fn, exact=exact)
    text = str(caught.value)
    assert "metric 'mine' (" in text
    assert found in text
    assert "or wrap the metric in a module whose forward picks what it takes." in text
    assert fit(Net(form=form), Picks(), *small, loss_fn, exact=exact)["train_mine"].notna().all()


def test_a_mistake_in_a_metric_of_the_users_own_stays_as_it_is(small):
    with pytest.raises(AttributeError, match="no_such_attribute"):
        fit(Net(), Mine(mistaken=True), *small, nn.CrossEntropyLoss())
    assert torch.is_grad_enabled()
