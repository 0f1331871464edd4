"""Steps whose update no graph has are a graph up to their gradients, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from called_again import Recorded, use_stand_in
from torch import nn
from torchmetrics import Accuracy, Metric
from zoo import ZOO

from hotloop import KerasModel
from hotloop.errors import NonFiniteError
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.graph.gradients import CompiledGradients, ReplayedGradients, add_to_grad
from hotloop.fitting.graph.graphed import GraphedStep
from hotloop.fitting.graph.pure_step import LossModule
from hotloop.fitting.graph.settings import GraphSettings

CPU = torch.device("cpu")
UP_TO_GRADIENTS = "compile: the training step is one graph up to its gradients"


class SignDescent(torch.optim.Optimizer):
    """An optimizer that torch does not know; it holds on to the gradients of its last step."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})
        self.held = []

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                self.held.append((param.grad, param.grad.clone()))
                param.data.sub_(group["lr"] * param.grad.sign())
        assert all(torch.equal(grad, copy) for grad, copy in self.held[-20:])


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def fit(
    make_optimizer=adam,
    sizes=(16, 16, 16, 16),
    animal="mlp",
    make_scheduler=None,
    dtype=torch.float64,
    **options,
):
    """Return history and weights of a fit with batches of these sizes."""
    torch.manual_seed(0)
    net = ZOO[animal].make().to(dtype)
    rows = [
        part.to(dtype) if part.is_floating_point() else part for part in ZOO[animal].make_rows()
    ]
    batches = [
        list(parts) for parts in zip(*(part.split(list(sizes)) for part in rows), strict=True)
    ]
    optimizer = make_optimizer(net.parameters())
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, scheduler)
    options = {"epochs": 3, "plot": False, "cpu": True, **options}
    history = model.fit(batches, **options)
    numbers = history.drop(columns="epoch").to_numpy().tolist()
    return numbers, [tensor.detach().clone() for tensor in net.state_dict().values()]


def assert_close(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=1e-9, atol=1e-9)
    for a, b in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def assert_same(first, second):
    assert first[0] == second[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def with_hook(parameters):
    optimizer = adam(parameters)
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: None)
    return optimizer


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)


ADDED_UP = "gradients are accumulated over several batches"
CASES = [
    ({"make_optimizer": lambda p: torch.optim.RMSprop(p, lr=0.01)}, "RMSprop is not among"),
    ({"make_optimizer": lambda p: torch.optim.NAdam(p, lr=0.01)}, "NAdam is not among"),
    ({"make_optimizer": SignDescent}, "SignDescent is not among"),
    ({"make_optimizer": with_hook, "clip_grad_norm": 0.1}, "step hooks"),
    ({"gradient_accumulation_steps": 2}, ADDED_UP),
    ({"gradient_accumulation_steps": 3, "clip_grad_norm": 0.1}, ADDED_UP),
    ({"gradient_accumulation_steps": 2, "sizes": (8, 8, 8, 8, 8, 5, 8, 6, 5)}, ADDED_UP),
    ({"gradient_accumulation_steps": 2, "sizes": (8, 8, 8, 8, 5, 8, 8, 6, 5)}, ADDED_UP),
]


@pytest.mark.parametrize(("options", "reason"), CASES)
def test_compiled_for_a_cpu(options, reason, capsys):
    compiled = fit(compile=True, **options)
    said = capsys.readouterr().out
    assert UP_TO_GRADIENTS in said
    assert f"the update is eager, since {reason}" in said.replace(
        "since the optimizer has", "since"
    )
    assert_close(fit(quiet=True, **options), compiled)


def test_buffers_and_random_numbers_of_a_compiled_one(capsys):
    options = {
        "animal": "conv, batchnorm, dropout", "gradient_accumulation_steps": 2, "epochs": 2
    }  # fmt: skip
    compiled = fit(compile=True, **options)
    random_state = torch.get_rng_state()
    assert UP_TO_GRADIENTS in capsys.readouterr().out
    assert_close(fit(quiet=True, **options), compiled)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        *CASES,
        ({}, "a graph reads the learning rate in float32"),
        (
            {"make_scheduler": one_cycle, "dtype": torch.float32},
            "hyperparameters other than the learning rate change",
        ),
    ],
)
def test_replayed_bit_for_bit(options, reason, monkeypatch, capsys):
    engines = use_stand_in(monkeypatch)
    graphed = fit(compile=True, **options)
    assert reason in capsys.readouterr().out
    assert isinstance(engines[-1], ReplayedGradients)
    assert_same(fit(quiet=True, **options), graphed)


class Shared(nn.Module):
    """Two biases with one gradient, a weight that is its own gradient, and one without any."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2, bias=False)
        self.first, self.second = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        self.own, self.unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, inputs):
        return self.layer(inputs) + self.first + self.second + 0.5 * self.own.square().sum()


def make_graphed(net, batch, loss_fn, scaler=None):
    accelerator = Accelerator(CPU)
    accelerator.scaler = scaler
    settings = GraphSettings(True, None, None, lambda: False, print)
    graphed = GraphedStep(net, loss_fn, adam(net.parameters()), accelerator, settings)
    graphed._module = LossModule(net, loss_fn, batch)
    return graphed


# Inductor imports torch.jit's old classes; fits leave its warnings out
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("kind", [CompiledGradients, ReplayedGradients])
def test_gradients_are_new_tensors_of_their_own(kind):
    torch.manual_seed(0)
    net, batch = Shared(), [torch.randn(16, 8), torch.randn(16, 2)]
    graphed = make_graphed(net, batch, lambda preds, labels: (preds - labels).sum())
    further = () if kind is CompiledGradients else (Recorded,)
    engine = kind(graphed, batch, *further)
    held = []
    for step in range(3):
        batch = [torch.randn(16, 8), torch.randn(16, 2)]
        engine.step(batch)
        add_to_grad(engine.params, engine.gradients)
        held.append([param.grad for param in engine.params if param.grad is not None])
        net.zero_grad()
        graphed.loss_fn(net(batch[0]), batch[1]).backward()
        expected = [param.grad for param in engine.params]
        net.zero_grad()
        assert [grad is None for grad in engine.gradients] == [grad is None for grad in expected]
        assert net.unused.grad is None
        for found, grad in zip(held[-1], [g for g in expected if g is not None], strict=True):
            torch.testing.assert_close(found, grad)
        places = [grad.untyped_storage().data_ptr() for grads in held for grad in grads]
        places += [tensor.untyped_storage().data_ptr() for tensor in [*batch, *net.parameters()]]
        assert len(set(places)) == len(places), step


def test_the_scale_of_a_loss_scaler_is_read_in_each_step():
    torch.manual_seed(0)
    net, batch = ZOO["mlp"].make(), [torch.randn(16, 8), torch.randint(2, (16,))]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # makes the scale
    graphed = make_graphed(net, batch, nn.CrossEntropyLoss(), scaler)
    engine = ReplayedGradients(graphed, batch, Recorded)
    assert scaler.get_scale() == 1024.0
    engine.step(batch)
    first = engine.gradients
    scaler._scale.mul_(0.5)
    engine.step(batch)
    assert all(torch.equal(a, 2 * b) for a, b in zip(first, engine.gradients, strict=True))
    assert engine.is_current()
    scaler._scale = scaler._scale.clone()
    assert not engine.is_current()


def test_a_scaler_that_was_loaded_scales():
    """It makes its scale when it first scales, which in a resumed run is the graph."""
    torch.manual_seed(0)
    net, batch = ZOO["mlp"].make(), [torch.randn(16, 8), torch.randint(2, (16,))]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    graphed = make_graphed(net, batch, nn.CrossEntropyLoss(), scaler)
    engine = ReplayedGradients(graphed, batch, Recorded)
    engine.step(batch)
    nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
    for param, gradient in zip(engine.params, engine.gradients, strict=True):
        torch.testing.assert_close(gradient, 1024 * param.grad)


def test_a_loss_that_is_not_finite_changes_no_weight(monkeypatch):
    for stand_in in (False, True):
        with monkeypatch.context() as patch:
            if stand_in:
                use_stand_in(patch)
            torch.manual_seed(0)
            net = ZOO["mlp"].make()
            inputs, labels = ZOO["mlp"].make_rows()
            inputs[50] = float("nan")
            batches = [list(rows) for rows in zip(inputs.split(8), labels.split(8), strict=True)]
            optimizer = torch.optim.RMSprop(net.parameters(), lr=0.01)
            model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
            with pytest.raises(NonFiniteError, match="step 7 of epoch 1"):
                model.fit(batches, epochs=2, cpu=True, plot=False, quiet=True, compile=True)
            assert all(p.isfinite().all() for p in net.parameters())
            assert all(p.grad is None for p in net.parameters())


def test_gradients_that_are_not_set_to_none_are_left_to_eager_steps(capsys):
    class Keeps(torch.optim.RMSprop):
        def zero_grad(self, set_to_none=True):
            super().zero_grad(set_to_none=False)

    def make(parameters):
        return Keeps(parameters, lr=0.01)

    compiled = fit(make, compile=True)
    assert "since the optimizer does not set gradients to None" in capsys.readouterr().out
    assert_same(fit(make, quiet=True), compiled)


def rebinds(parameters):
    """An optimizer that gives weights another place in memory in each step."""

    class Rebinds(SignDescent):
        def step(self, closure=None):
            for param in self.param_groups[0]["params"]:
                if param.grad is not None:
                    param.data = param.data - 0.1 * param.grad

    return Rebinds(parameters)


class Annealed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.tau = nn.Linear(8, 2), 1.0

    def forward(self, inputs):
        return self.layer(inputs) / self.tau


def anneal(net, num_steps):
    net.tau *= 1.05


def freeze_in_mid_epoch(net, num_steps):
    if num_steps == 6:
        net.layer.bias.requires_grad_(False)


def fit_own(make_net, make_optimizer, change=None, in_epoch=None, **options):
    torch.manual_seed(0)
    inputs, labels = ZOO["mlp"].make_rows()
    net = make_net().double()
    batches = [list(rows) for rows in zip(inputs.double().split(8), labels.split(8), strict=True)]
    optimizer = make_optimizer(net.parameters())
    metrics = options.pop("metrics", None)
    model = KerasModel(net, options.pop("loss_fn", nn.CrossEntropyLoss()), metrics, optimizer)
    if change is not None:
        num_steps = []

        def hook(optimizer, args, kwargs):
            num_steps.append(1)
            change(net, len(num_steps))

        optimizer.register_step_post_hook(hook)

    class Callback:
        def on_train_epoch_end(self, model):
            if in_epoch is not None and len(model.history["epoch"]) == 1:
                in_epoch(model)

    callbacks = [Callback()]
    options = {"epochs": 3, "plot": False, "cpu": True, "callbacks": callbacks, **options}
    history = model.fit(batches, **options)
    numbers = history.drop(columns="epoch").to_numpy().tolist()
    return numbers, [tensor.detach().clone() for tensor in net.state_dict().values()]


def both_ways(monkeypatch, *arguments, **options):
    """Compare compiled and replayed runs with eager ones."""
    eager = fit_own(*arguments, quiet=True, **options)
    assert_close(eager, fit_own(*arguments, compile=True, **options))
    with monkeypatch.context() as patch:
        use_stand_in(patch)
        assert_same(eager, fit_own(*arguments, compile=True, **options))
    return eager


@pytest.mark.parametrize(
    ("make_optimizer", "change"), [(rebinds, None), (adam, anneal), (adam, freeze_in_mid_epoch)]
)
def test_what_an_optimizer_or_its_hooks_change_is_seen_in_the_next_step(
    make_optimizer, change, monkeypatch
):
    both_ways(monkeypatch, Annealed, make_optimizer, change)


def replace_head(model):
    model.net[2] = nn.Linear(16, 2).double()
    model.optimizer.param_groups[0]["params"] = list(model.net.parameters())


def replace_parameter_in_place(model):
    model.net[2].weight = nn.Parameter(model.net[2].weight.data)
    model.optimizer.param_groups[0]["params"] = list(model.net.parameters())


@pytest.mark.parametrize("change", [replace_head, replace_parameter_in_place])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
def test_parameters_that_take_the_place_of_others_are_trained(change, options, monkeypatch):
    def make():
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))

    both_ways(monkeypatch, make, lambda p: torch.optim.SGD(p, lr=0.1), None, change, **options)


class InTuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs):
        return (self.layer(inputs),)


class FirstOfTuple(Metric):
    """Reads predictions in the form that the net gives them."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds, labels):
        self.total += preds[0].argmax(1).eq(labels).sum()

    def compute(self):
        return self.total


@pytest.mark.parametrize("make_optimizer", [adam, lambda p: torch.optim.RMSprop(p, lr=0.01)])
def test_predictions_keep_their_form(make_optimizer, monkeypatch):
    def loss_fn(preds, labels):
        return nn.functional.cross_entropy(preds[0], labels)

    metrics = {"num_right": FirstOfTuple()}
    numbers, _ = both_ways(monkeypatch, InTuple, make_optimizer, loss_fn=loss_fn, metrics=metrics)
    assert numbers[-1][1] > 32


def test_biases_before_batch_normalisation_are_no_hindrance(capsys):
    """Their gradients are nothing but rounding, which two forms of a step have differently."""

    def train(compile_it):
        torch.manual_seed(2)
        images, labels = torch.randn(192, 3, 12, 12), torch.randint(2, (192,))
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3),
            nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
        )  # fmt: skip
        optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        batches = [list(rows) for rows in zip(images.split(32), labels.split(32), strict=True)]
        history = model.fit(batches, epochs=2, cpu=True, plot=False, compile=compile_it)
        return torch.tensor(history["train_loss"].to_numpy())

    eager, compiled = train(False), train(True)
    assert UP_TO_GRADIENTS in capsys.readouterr().out
    torch.testing.assert_close(eager, compiled, rtol=1e-3, atol=1e-4)


class Duck:
    """An optimizer with nothing but ``step`` and ``zero_grad``."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self):
        with torch.no_grad():
            for parameter in self.parameters:
                parameter -= 0.1 * parameter.grad

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "clip_grad_norm": 0.1}])
def test_optimizers_of_any_kind(options, monkeypatch):
    both_ways(monkeypatch, lambda: nn.Linear(8, 2), Duck, **options)


def test_a_run_that_is_over_before_a_graph_is_made_says_so(capsys):
    fit(sizes=(64,), epochs=1, compile=True)
    assert "ran eagerly: the run was over before a graph was made" in capsys.readouterr().out
    fit(sizes=(64,), epochs=1)
    assert "compile:" not in capsys.readouterr().out
