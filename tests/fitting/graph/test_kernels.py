"""Captured steps of Inductor's kernels, with a capture that calls them again on the CPU."""

from __future__ import annotations

import functools
import gc
import types
import weakref

import pytest
import torch
from called_again import CalledAgain, use_stand_in
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy
from zoo import ZOO

from hotloop import KerasModel
from hotloop.errors import SettingsError
from hotloop.fitting.graph import build, capture, graphed
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.kernels import InductorKernels, Sketch, TorchKernels
from hotloop.fitting.graph.pure_step import LossModule

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


def test_measuring_that_fails_leaves_the_graph_as_it_is(monkeypatch, capsys):
    """A capture that failed makes those of before useless, and not the one that comes after."""

    class Measured(InductorKernels):
        def __init__(self, sketch):
            super().__init__(sketch)
            capture._num_failures += 1

    monkeypatch.setattr(capture, "_num_failures", 0)
    monkeypatch.setattr(build, "InductorKernels", Measured)
    engines = use_stand_in(monkeypatch, CalledAgain, inductor=True)
    train(ZOO["mlp"].make, ZOO["mlp"].loader(), compile=True)
    assert "runs eagerly" not in capsys.readouterr().out
    assert len(engines) == 1


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


class Reused(nn.Module):
    """One layer, and one with buffers, under two names each."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.again, self.alias = self.first, self.norm

    def forward(self, inputs):
        hidden = self.norm(self.first(inputs)).relu()
        return self.head(self.again(hidden))


@pytest.mark.parametrize("stand_in", [False, True])
def test_a_module_under_two_names(stand_in, monkeypatch, capsys):
    eager = train(Reused, ZOO["mlp"].loader(), quiet=True)
    if stand_in:
        use_stand_in(monkeypatch, CalledAgain, inductor=True)
    compiled = train(Reused, ZOO["mlp"].loader(), compile=True)
    said = capsys.readouterr().out
    assert "the training step is one graph" in said
    assert "left to torch" not in said
    assert_alike(eager, compiled)
    assert {type(tensor) for tensor in compiled[1]} == {torch.Tensor}


def test_an_engine_that_is_dropped_frees_its_memory(monkeypatch):
    """At once, and not when Python next looks for cycles: it has a graph's memory on a GPU."""

    class Weakly(CalledAgain):
        def __init__(self, function):
            super().__init__(function)
            self.method = weakref.WeakMethod(function)  # as a graph, it does not hold on to it
            del self.function

        def function(self):
            return self.method()()

    engines = use_stand_in(monkeypatch, Weakly, inductor=True)
    freed = []
    drop = graphed.GraphedStep._drop_engine

    def drop_and_look(step):
        held = [weakref.ref(engine) for engine in engines]
        engines.clear()
        drop(step)
        freed.extend(reference() is None for reference in held)

    monkeypatch.setattr(graphed.GraphedStep, "_drop_engine", drop_and_look)
    gc.collect()
    gc.disable()
    try:
        train(ZOO["mlp"].make, ZOO["mlp"].loader(), compile=True, quiet=True)
    finally:
        gc.enable()
    assert freed == [True]


def test_what_no_kernels_serve_is_said_once(monkeypatch, capsys):
    use_stand_in(monkeypatch, CalledAgain, inductor=True)
    rows = TensorDataset(torch.randint(20, (64,)), torch.randint(2, (64,)))
    train(
        lambda: nn.EmbeddingBag(20, 2, sparse=True, mode="sum"),
        DataLoader([(ids.reshape(1), label) for ids, label in rows], 16),
        lambda p: torch.optim.SGD(p, lr=0.1),
        compile=True,
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compile")]
    assert len(lines) == 1
    assert "runs eagerly, since" in lines[0]


def fp16_sketch():
    """A loss so small that gradients in float16 are nothing without its scale."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    leaves = [torch.randn(512, 64), torch.zeros(512, 64)]

    def loss_fn(preds, labels):
        return (1e-2 * preds.float() - labels).square().mean()

    module = LossModule(net, loss_fn, leaves)
    autocast = functools.partial(torch.autocast, "cpu", dtype=torch.float16, cache_enabled=False)
    return Sketch(
        module, list(module.parameters()), leaves, autocast, torch.float16, torch.tensor(65536.0)
    )


# Inductor imports torch.jit's old classes; fits leave its warnings out
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_what_is_rounding_in_fp16_is_told_with_the_scale():
    sketch = fp16_sketch()
    kernels = InductorKernels(sketch)
    state = [tensor.detach().clone() for tensor in sketch.module.parameters()]
    masks = kernels.find_rounding(state)
    assert sorted(masks) == sorted(map(id, sketch.params))
    assert all(float(mask.float().mean()) < 0.3 for mask in masks.values())
    _, _, gradients = kernels.run()
    for gradient, expected in zip(gradients, TorchKernels(sketch).run()[2], strict=True):
        assert torch.linalg.vector_norm(expected) > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-3)


def test_a_run_that_goes_on_elsewhere_keeps_what_it_was_asked():
    def make(device):
        settings = graphed.GraphSettings(True, None, None, lambda: False, print, inductor=True)
        accelerator = types.SimpleNamespace(device=torch.device(device))
        return graphed.GraphedStep(nn.Linear(2, 2), None, None, accelerator, settings)

    step = make("cuda")
    step.load_state_dict(make("cpu").state_dict())
    assert step.inductor
    step.leave_inductor("it fails here")
    other = make("cpu")
    other.load_state_dict(step.state_dict())
    again = make("cuda")
    again.load_state_dict(other.state_dict())
    assert not again.inductor
