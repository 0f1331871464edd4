"""``fit`` on an accelerator, where the machine has one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import Tokens, make_conv_net, make_loaders
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.errors import IndexRangeError, LabelError, NonFiniteError

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


def make_tokens(length=10):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (400, length), generator=generator)
    return tokens, torch.randint(3, (400,), generator=generator)


def make_token_model():
    net = Tokens(num_tokens=20, num_positions=12, num_classes=3)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    return KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)


@pytest.mark.parametrize("options", [{}, {"resident_budget": 0.0}, {"compile": True},
                                     {"resident_budget": 0.0, "compile": True}])  # fmt: skip
def test_embeddings_indices_out_of_range_do_not_end_the_device(options):
    tokens, labels = make_tokens()
    fit(make_token_model(), DataLoader(TensorDataset(tokens, labels), 16), **options)
    tokens[350, 3] = 20
    for form in (TensorDataset(tokens, labels), AsDicts(tokens, labels)):
        with pytest.raises(IndexRangeError, match=r"'tokens' .* to 20 .* 20 rows.*sample 350\)"):
            fit(make_token_model(), DataLoader(form, 16), **options)
    model = make_token_model()
    with pytest.raises(IndexRangeError, match="layer 'tokens'"):
        model.evaluate(DataLoader(TensorDataset(tokens, labels), 16))
    with pytest.raises(IndexRangeError, match="layer 'tokens'"):
        model.predict(tokens)
    with pytest.raises(IndexRangeError, match="layer 'positions'"):
        fit(make_token_model(), DataLoader(TensorDataset(*make_tokens(13)), 16), **options)
    assert torch.ones(3, device=torch.accelerator.current_accelerator()).sum().item() == 3


class AsDicts(Dataset):
    def __init__(self, tokens, labels):
        self.tokens, self.given_labels = tokens, labels

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"inputs": self.tokens[index], "labels": self.given_labels[index]}


def test_an_assertion_that_nobody_saw_coming_is_explained():
    """In a process of its own, for it ends that one's use of the device."""
    program = """
import sys
import torch
from torch import nn
from hotloop import KerasModel
from hotloop.errors import IndexRangeError

sys.path.append(sys.argv[1])
from builders import Picks

net = Picks()
model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
batch = torch.full((4, 3), 10), torch.zeros(4, dtype=torch.int64)
try:
    model.fit([batch], epochs=3, plot=False, quiet=True)
except IndexRangeError as error:
    print("explained:", error)
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parents[1])]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "explained: a kernel on cuda" in found.stdout, found.stderr


def test_nan_names_the_step(images):
    inputs = images[0].clone()
    inputs[:] = float("nan")
    with pytest.raises(NonFiniteError, match="step 1 of epoch 1"):
        fit(make_model(), *make_loaders((inputs, images[1])))
