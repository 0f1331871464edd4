"""``compile``: the numbers are the eager step's up to rounding, or the step stays eager."""

from __future__ import annotations

import copy
import random
import sys
import types
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy
from zoo import ZOO, make_gan_model

from hotloop import KerasModel
from hotloop.errors import NonFiniteError, SettingsError

ONE_GRAPH = "compile: the training step is one graph"
EAGER = "compile: the training step runs eagerly, since"


def train(animal, make_optimizer, epochs=2, precision=torch.float64, **options):
    """Return history and net of a fit whose random numbers are the same each time."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    net = animal.make().to(precision)
    optimizer = make_optimizer(net.parameters())
    make_scheduler = options.pop("make_scheduler", None)
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    accuracy = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), accuracy, optimizer, scheduler)
    loader = to_precision(animal.loader(), precision)
    options = {"plot": False, "cpu": True, "patience": epochs, **options}
    history = model.fit(loader, epochs=epochs, **options)
    return history, net


def to_precision(loader, precision):
    batches = []
    for batch in loader:
        if isinstance(batch, dict):
            batches.append({k: _cast(v, precision) for k, v in batch.items()})
        else:
            batches.append([_cast(v, precision) for v in batch])
    return batches


def _cast(tensor, precision):
    return tensor.to(precision) if tensor.is_floating_point() else tensor


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def assert_close(first, second):
    for a, b in zip(first, second, strict=True):
        columns = [c for c in a[0].columns if c.endswith("loss")]
        torch.testing.assert_close(
            torch.tensor(a[0][columns].to_numpy()), torch.tensor(b[0][columns].to_numpy()),
            rtol=1e-6, atol=1e-7,
        )  # fmt: skip
        for name, value in a[1].state_dict().items():
            other = b[1].state_dict()[name]
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)


def traces_attention():
    """Whether torch traces attention in float64 as it is: 2.11 takes a part for float32."""
    heads = torch.empty(1, 1, 1, 8, dtype=torch.float64, device="meta")
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(heads, heads, heads)[1].dtype == torch.float64


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if animal.pure])
def test_pure_nets_are_one_graph_with_the_same_numbers(name, capsys):
    compiled = train(ZOO[name], adam, compile=True)
    random_state = torch.get_rng_state()
    said = capsys.readouterr().out
    if name == "transformer" and not traces_attention():
        assert f"{EAGER} a trial of it failed: expected scalar type Double" in said
    else:
        assert ONE_GRAPH in said
    assert_close([train(ZOO[name], adam, quiet=True)], [compiled])
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_transformer_in_float32_is_one_graph(capsys):
    """On torch 2.11 too."""
    runs = [
        train(ZOO["transformer"], adam, precision=torch.float32, compile=compile_it)
        for compile_it in (False, True)
    ]
    assert ONE_GRAPH in capsys.readouterr().out
    for one, other in zip(*(net.parameters() for _, net in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if animal.pure is not True])
def test_what_is_not_pure_stays_eager_and_says_why(name, capsys):
    first = train(ZOO[name], adam, compile=True)
    said = capsys.readouterr().out
    second = train(ZOO[name], adam, quiet=True)
    if ZOO[name].pure is False:
        assert said.count(EAGER) == 1
    assert_close([second], [first])
    if ZOO[name].pure is False:
        for a, b in zip(first[1].parameters(), second[1].parameters(), strict=True):
            assert torch.equal(a, b)


OPTIMIZERS = {
    "adam, decay, amsgrad": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "adamw, two groups": lambda p: torch.optim.AdamW(_two_groups(p), lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01, maximize=False),
    "sgd, nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
}


def _two_groups(parameters):
    parameters = list(parameters)
    return [{"params": parameters[:1], "lr": 0.02}, {"params": parameters[1:], "weight_decay": 0.3}]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_schedules_and_clipping(name, capsys):
    def one_cycle(optimizer):  # changes momentum or betas in every step too
        cycles = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.05, total_steps=40, cycle_momentum=cycles
        )

    options = {"make_scheduler": one_cycle, "clip_grad_norm": 0.1, "epochs": 3}
    compiled = train(ZOO["mlp"], OPTIMIZERS[name], compile=True, **options)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_close([train(ZOO["mlp"], OPTIMIZERS[name], quiet=True, **options)], [compiled])


def test_fp16_stays_eager_on_a_cpu(capsys):
    train(ZOO["mlp"], adam, compile=True, mixed_precision="fp16", precision=torch.float32)
    assert "since fp16 scales the loss" in capsys.readouterr().out


def test_hooks_of_all_optimizers_are_called(capsys):
    calls = []
    handle = register_optimizer_step_post_hook(lambda *_: calls.append(1))
    try:
        train(ZOO["mlp"], adam, compile=True)
    finally:
        handle.remove()
    assert "step hooks" in capsys.readouterr().out
    assert len(calls) == 8


def test_a_custom_step_stays_eager(capsys):
    model = make_gan_model()
    net = model.net
    before = copy.deepcopy(net.state_dict())
    model.fit(ZOO["mlp"].loader(), epochs=1, cpu=True, plot=False, compile=True)
    assert "since the StepRunner is your own" in capsys.readouterr().out
    assert all(not torch.equal(before[k], v) for k, v in net.state_dict().items() if "weight" in k)


class Scaled(nn.Module):
    """Reads a plain attribute, which a callback changes between epochs."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(8, 2), 1.0

    def forward(self, inputs):
        return self.layer(inputs) * self.scale


class Anneal:
    def on_train_epoch_end(self, model):
        model.net.scale *= 0.5


class Freeze:
    def on_train_epoch_end(self, model):
        model.net[0].weight.requires_grad_(False)


class LoadState:
    """Puts other dicts in the place of the optimizer's groups, with another rate."""

    def on_train_epoch_end(self, model):
        state = model.optimizer.state_dict()
        for group in state["param_groups"]:
            group["lr"] *= 0.1
        model.optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "callback"), [(Scaled, Anneal), (None, Freeze), (None, LoadState)]
)
def test_what_a_callback_changes_between_epochs_is_seen(make, callback, capsys):
    animal = ZOO["mlp"] if make is None else type(ZOO["mlp"])(make, ZOO["mlp"].make_rows, True)
    options = {"epochs": 3, "callbacks": [callback()]}
    compiled = train(animal, adam, compile=True, **options)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_close([train(animal, adam, quiet=True, **options)], [compiled])


def test_short_last_batches_and_resident_data(small, capsys):
    """200 rows by 48: three graph steps and an eager one each epoch, on the same state."""

    def run(**options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        model = KerasModel(net, nn.CrossEntropyLoss(), None, adam(net.parameters()))
        data = TensorDataset(small[0].double(), small[1])
        loader = DataLoader(data, 48, shuffle=True, generator=torch.Generator().manual_seed(0))
        history = model.fit(loader, epochs=3, cpu=True, plot=False, **options)
        steps = {int(state["step"]) for state in model.optimizer.state.values()}
        return (history, net), steps

    compiled, steps = run(compile=True)
    assert ONE_GRAPH in capsys.readouterr().out
    assert steps == {15}  # the optimizer's own count is as ever
    assert_close([run(quiet=True)[0]], [compiled])


def test_a_loss_that_is_not_finite_leaves_weights_as_they_were():
    torch.manual_seed(0)
    inputs, labels = ZOO["mlp"].make_rows()
    inputs[50] = float("nan")
    net = ZOO["mlp"].make()
    optimizer = adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer, scheduler)
    loader = DataLoader(TensorDataset(inputs, labels), 8)
    with pytest.raises(NonFiniteError, match="step 7 of epoch 1"):
        model.fit(loader, epochs=2, cpu=True, plot=False, quiet=True, compile=True)
    assert all(p.isfinite().all() for p in net.parameters())
    assert {float(state["step"]) for state in optimizer.state.values()} == {6.0}
    assert scheduler.last_epoch == 6


def test_bf16_and_nested_batches(capsys):
    """Guards hold under autocast; a batch of lists is flattened."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, pair):
            return self.layer(pair[0] + pair[1])

    inputs, labels = ZOO["mlp"].make_rows()
    batches = [[[x, 2 * x], y] for x, y in zip(inputs.split(16), labels.split(16), strict=True)]
    losses = []
    for compile_it in (True, False):
        torch.manual_seed(0)
        net = Two()
        model = KerasModel(net, nn.CrossEntropyLoss(), None, adam(net.parameters()))
        history = model.fit(batches, epochs=5, cpu=True, plot=False, compile=compile_it,
                            mixed_precision="bf16")  # fmt: skip
        losses.append(torch.tensor(history["train_loss"].to_numpy()))
    said = capsys.readouterr().out
    assert said.count(ONE_GRAPH) == 1
    assert "runs eagerly" not in said
    torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-2)


class Encoding(UserDict):
    """Of the form of Hugging Face's ``BatchEncoding``."""

    def to(self, device):
        self.data = {name: tensor.to(device) for name, tensor in self.data.items()}
        return self


class Collector:
    """Of the form of transformers' own: set and reset in each forward."""

    compiling = False
    value = None

    def set(self, value):
        self.value = value
        self.compiling = True

    def get(self):
        return self.value

    def reset(self, token):
        self.value = None
        self.compiling = False


Collector.__name__ = "CompileableContextVar"


@pytest.fixture
def capturing(monkeypatch):
    module = types.ModuleType("transformers.utils.output_capturing")
    module._active_collector = Collector()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


class Transformer(nn.Module):
    def __init__(self, capturing):
        super().__init__()
        self.layer, self.capturing = nn.Linear(8, 2), capturing

    def forward(self, inputs, labels):
        token = self.capturing._active_collector.set({})
        logits = self.layer(inputs)
        self.capturing._active_collector.reset(token)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Nano(nn.Module):
    """Returns predictions and loss as a tuple, and takes the labels by name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs, targets=None):
        logits = self.layer(inputs)
        return logits, nn.functional.cross_entropy(logits, targets)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, inputs):
        return {"logits": self.first(inputs), "aux": self.second(inputs)}


def of_both_heads(output, labels):
    first = output["logits"] if isinstance(output, dict) else output
    loss = nn.functional.cross_entropy(first, labels)
    if isinstance(output, dict):
        loss = loss + nn.functional.cross_entropy(output["aux"], labels)
    return loss


@pytest.mark.parametrize("kind", ["transformer", "nano", "heads"])
def test_nets_of_other_libraries_forms_are_one_graph(kind, capsys, capturing):
    inputs, labels = ZOO["mlp"].make_rows()
    batches = list(zip(inputs.double().split(16), labels.split(16), strict=True))
    if kind == "transformer":
        batches = [Encoding(inputs=x, labels=y) for x, y in batches]
    runs = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        net = {"transformer": lambda: Transformer(capturing), "nano": Nano, "heads": Heads}[kind]()
        net = net.to(torch.float64)
        loss_fn = of_both_heads if kind == "heads" else None
        accuracy = {"acc": Accuracy(task="multiclass", num_classes=2)}
        model = KerasModel(net, loss_fn, accuracy, adam(net.parameters()))
        history = model.fit(batches, epochs=3, cpu=True, plot=False, compile=compile_it)
        runs.append((history, net))
    said = capsys.readouterr().out
    assert said.count(ONE_GRAPH) == 1, said
    assert_close(runs[:1], runs[1:])
    assert runs[0][0]["train_acc"].equals(runs[1][0]["train_acc"])
    assert type(capturing._active_collector) is Collector


def test_an_optimizer_that_holds_parameters_of_another_module(small, capsys):
    """They get no gradient in these steps, and stay as they are."""
    runs = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        net, other = nn.Linear(4, 2), nn.Linear(3, 1)
        optimizer = adam([*net.parameters(), *other.parameters()])
        other(torch.ones(1, 3)).sum().backward()
        optimizer.step()  # so that they have a state
        optimizer.zero_grad()
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer, other=other)
        loader = DataLoader(TensorDataset(*small), 20)
        history = model.fit(loader, epochs=2, plot=False, cpu=True, compile=compile_it)
        runs.append((history, nn.ModuleList([net, other])))
    assert_close(runs[:1], runs[1:])
    assert ONE_GRAPH in capsys.readouterr().out


def test_exact_and_auto_stay_exact(capsys):
    train(ZOO["mlp"], adam, compile="auto", exact=True)
    assert "compile:" not in capsys.readouterr().out


def test_auto_does_not_compile_a_short_run(capsys):
    train(ZOO["mlp"], adam, compile="auto", epochs=20)
    said = capsys.readouterr().out
    assert "too few to pay for it" in said
    assert said.count("compile:") == 1


def test_compile_and_exact_exclude_each_other():
    for value, options in ((True, {"exact": True}), ("always", {})):
        with pytest.raises(SettingsError, match="compile="):
            train(ZOO["mlp"], adam, compile=value, quiet=True, **options)
