"""``fit`` on an accelerator, where the machine has one."""

from __future__ import annotations

import pytest
import torch
from builders import make_conv_net, make_loaders
from torch import nn
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.errors import LabelError, NonFiniteError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]


def make_model(**options):
    torch.manual_seed(0)
    net = make_conv_net()
    accuracy = {"acc": Accuracy(task="multiclass", num_classes=10)}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    return KerasModel(net, nn.CrossEntropyLoss(**options), accuracy, optimizer)


def fit(model, *data, **options):
    return model.fit(*data, **{"epochs": 3, "plot": False, "quiet": True, **options})


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"mixed_precision": "bf16"},
                                     {"mixed_precision": "fp16"}])  # fmt: skip
def test_learns_and_everything_follows(images, options):
    model = make_model(weight=torch.ones(10))
    history = fit(model, *make_loaders(images), monitor="val_acc", mode="max", **options)
    assert history["val_acc"].max() > 0.5
    assert next(model.net.parameters()).device.type != "cpu"
    assert model.predict(images[0][:10]).device.type == "cpu"
    fit(model, *make_loaders(images), cpu=True, epochs=1)  # state follows back
    assert next(model.net.parameters()).device.type == "cpu"
    fit(model, *make_loaders(images), epochs=1)


def test_labels_out_of_range_do_not_end_the_device(images):
    inputs, labels = images[0], images[1].clone()
    labels[50] = 10
    for budget in (0.0, None):
        with pytest.raises(LabelError, match="from 0 to 10"):
            fit(make_model(), *make_loaders((inputs, labels)), resident_budget=budget)
    assert torch.ones(3, device=torch.accelerator.current_accelerator()).sum().item() == 3


def test_nan_names_the_step(images):
    inputs = images[0].clone()
    inputs[:] = float("nan")
    with pytest.raises(NonFiniteError, match="step 1 of epoch 1"):
        fit(make_model(), *make_loaders((inputs, images[1])))
