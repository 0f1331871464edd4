"""Captured steps of Inductor's kernels, with a capture that calls them again on the CPU."""

from __future__ import annotations

import pytest
import torch
from called_again import CalledAgain, use_stand_in
from torch import nn
from torchmetrics import Accuracy
from zoo import ZOO

from hotloop import KerasModel
from hotloop.errors import SettingsError
from hotloop.fitting.graph import build
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.kernels import InductorKernels

PURE = [name for name, animal in ZOO.items() if animal.pure]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=2**-7)  # which float32 and float64 hold alike


def train(make, loader, make_optimizer=adam, val=None, **options):
    torch.manual_seed(0)
    net = make()
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, make_optimizer(net.parameters()))
    history = model.fit(loader, val, **{"epochs": 3, "plot": False, "cpu": True, **options})
    numbers = history.drop(columns="epoch").to_numpy().tolist()
    return numbers, list(net.state_dict().values())


def assert_alike(first, second, tolerance=1e-3):
    """Losses and metrics; what rounding does to single weights is in ``test_compiled_nets``."""
    torch.testing.assert_close(first[0], second[0], rtol=tolerance, atol=tolerance)


class Dropped(nn.Module):
    """Dropout as CUDA has it: one operator that draws, and multiplies."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, inputs):
        hidden = torch.native_dropout(self.first(inputs).relu(), 0.3, self.training)[0]
        return self.second(torch.native_dropout(hidden, 0.2, self.training)[0])


@pytest.mark.parametrize("name", PURE)
def test_zoo(name, monkeypatch, capsys):
    animal = ZOO[name]
    eager = train(animal.make, animal.loader(), quiet=True)
    engines = use_stand_in(monkeypatch, CalledAgain, inductor=True)
    compiled = train(animal.make, animal.loader(), compile=True)
    said = capsys.readouterr().out
    assert "the training step is one graph, built in" in said
    assert "with kernels of Inductor's" in said
    (engine,) = engines
    assert not engine.exact
    assert isinstance(engine._kernels, InductorKernels)
    assert_alike(eager, compiled)


@pytest.mark.parametrize("options", [
    {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)},
    {"make_optimizer": lambda p: torch.optim.RMSprop(p, lr=0.01)},
    {"clip_grad_norm": 0.1},
    {"gradient_accumulation_steps": 2},
])  # fmt: skip
def test_settings(options, monkeypatch, capsys):
    animal = ZOO["conv, batchnorm, dropout"]
    eager = train(animal.make, animal.loader(), quiet=True, **options)
    use_stand_in(monkeypatch, CalledAgain, inductor=True)
    compiled = train(animal.make, animal.loader(), compile=True, **options)
    said = capsys.readouterr().out
    assert "with kernels of Inductor's" in said
    assert "left to torch" not in said
    assert_alike(eager, compiled)


def test_masks_of_dropout_are_torchs(monkeypatch, capsys):
    eager = train(Dropped, ZOO["mlp"].loader(), quiet=True)
    use_stand_in(monkeypatch, CalledAgain, inductor=True)
    compiled = train(Dropped, ZOO["mlp"].loader(), compile=True)
    said = capsys.readouterr().out
    assert "with kernels of Inductor's" in said
    assert "left to torch" not in said
    assert_alike(eager, compiled, tolerance=1e-5)


def fails(sketch):
    raise DeclinedError("no compiler")


class Doubled(InductorKernels):
    """Miscompiled."""

    def run(self):
        loss, preds, gradients = super().run()
        return 2 * loss, preds, gradients


@pytest.mark.parametrize(("kernels", "reason"), [
    (fails, "no compiler"),
    (Doubled, "a trial of the graph did not give what the eager step gave"),
])  # fmt: skip
def test_torchs_kernels_are_replayed_where_inductor_fails(kernels, reason, monkeypatch, capsys):
    animal = ZOO["mlp"]
    eager = train(animal.make, animal.loader(), quiet=True)
    engines = use_stand_in(monkeypatch, CalledAgain, inductor=True)
    monkeypatch.setattr(build, "InductorKernels", kernels)
    replayed = train(animal.make, animal.loader(), compile=True)
    said = capsys.readouterr().out
    left = f"compile: the training step is left to torch's own kernels, since {reason}"
    assert said.count(left) == 1
    assert said.index(left) < said.rindex("the training step is one graph")
    assert engines[-1].exact
    assert eager[0] == replayed[0]


def test_inductor_and_exact_exclude_each_other():
    with pytest.raises(SettingsError, match="compile='inductor' and exact=True exclude"):
        train(ZOO["mlp"].make, ZOO["mlp"].loader(), compile="inductor", exact=True)


def test_on_a_cpu_it_is_what_true_is(capsys):
    train(ZOO["mlp"].make, ZOO["mlp"].loader(), compile="inductor")
    assert "compile: the training step is one graph, built in" in capsys.readouterr().out
