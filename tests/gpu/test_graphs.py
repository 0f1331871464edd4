"""The zoo on CUDA: a graphed run gives what the eager run gives, or stays eager and says so."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy
from zoo import ZOO, make_gan_model, make_resnet

from hotloop import KerasModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ONE_GRAPH = "compile: the training step is one graph"
EAGER = "compile: the training step runs eagerly, since"


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def train(make, loader, make_optimizer=adam, make_scheduler=None, **options):
    torch.manual_seed(0)
    random.seed(0)
    net = make()
    optimizer = make_optimizer(net.parameters())
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    accuracy = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), accuracy, optimizer, scheduler)
    history = model.fit(loader, **{"epochs": 4, "plot": False, **options})
    return history["train_loss"].tolist(), [p.detach().cpu() for p in net.parameters()]


def assert_alike(first, second, tolerance=1e-3):
    torch.testing.assert_close(first[0], second[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("name", list(ZOO))
def test_zoo(name, capsys):
    animal = ZOO[name]
    eager = train(animal.make, animal.loader(), quiet=True)
    graphed = train(animal.make, animal.loader(), compile=True)
    said = capsys.readouterr().out
    if animal.pure is not None:
        assert (ONE_GRAPH if animal.pure else EAGER) in said
    assert_alike(eager, graphed)


def test_resnet18(capsys):
    animal = ZOO["resnet"]
    eager = train(make_resnet, animal.loader(), quiet=True)
    graphed = train(make_resnet, animal.loader(), compile=True)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_alike(eager, graphed, tolerance=1e-2)


@pytest.mark.parametrize("options", [
    {"clip_grad_norm": 0.1},
    {"mixed_precision": "bf16"},
    {"mixed_precision": "fp16"},
    {"gradient_accumulation_steps": 2},
    {"tf32": True},
    {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)},
    {"make_optimizer": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)},
    {"make_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)},
    {"make_scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=50)},
])  # fmt: skip
def test_settings(options):
    animal = ZOO["conv, batchnorm, dropout"]
    eager = train(animal.make, animal.loader(), quiet=True, **options)
    graphed = train(animal.make, animal.loader(), quiet=True, compile=True, **options)
    assert_alike(eager, graphed, 2e-2 if "mixed_precision" in options else 1e-3)


def test_short_last_batches():
    inputs, labels = ZOO["mlp"].make_rows()
    loader = DataLoader(TensorDataset(inputs, labels), 24)
    eager = train(ZOO["mlp"].make, loader, quiet=True)
    assert_alike(eager, train(ZOO["mlp"].make, loader, quiet=True, compile=True))


def test_streamed_batches_are_the_same(capsys):
    """Off the resident path: pinned copies on a stream of their own."""
    animal = ZOO["mlp"]
    resident = train(animal.make, animal.loader(), quiet=True)
    for options in ({}, {"compile": True}):
        streamed = train(animal.make, animal.loader(), quiet=True, resident_budget=0, **options)
        assert_alike(resident, streamed)


def test_a_pair_of_nets_in_a_step_of_its_own(capsys):
    model = make_gan_model()
    model.fit(ZOO["mlp"].loader(), epochs=1, plot=False, compile=True)
    assert "since the StepRunner is your own" in capsys.readouterr().out
