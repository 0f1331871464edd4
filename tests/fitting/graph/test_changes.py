"""What a user changes while a step is a graph is what the eager step would see."""

from __future__ import annotations

import time

import pytest
import torch
from called_again import CalledAgain, use_stand_in
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.fitting.graph.batch_places import BatchPlaces
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.worth import Worth
from hotloop.fitting.loop import EpochRunner


class Net(nn.Module):
    """With a plain attribute, a mask and a mask of infinities."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.tau = nn.Linear(4, 8), nn.Linear(8, 2), 1.0
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool))
        self.register_buffer("additive", torch.tensor([0.0, float("-inf")]))

    def forward(self, inputs):
        hidden = (self.body(inputs) * self.mask).relu()
        return self.head(self.soften(hidden)) + self.additive.clamp(min=-1e-3)

    def soften(self, hidden):
        return hidden / self.tau


class Changes:
    """Does something at the end of the first epoch."""

    def __init__(self, change):
        self.change = change

    def on_train_epoch_end(self, model):
        if len(model.history["epoch"]) == 1:
            self.change(model)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.25, fused=True)


def replace_loss(model):
    model.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.5)


def replace_optimizer(model):
    model.optimizer = torch.optim.SGD(model.net.parameters(), lr=0.5, fused=True)


def add_forward_hook(model):
    model.net.head.register_forward_hook(lambda module, args, output: 0.5 * output)


def add_gradient_hook(model):
    model.net.body.weight.register_hook(lambda grad: 0 * grad)


def add_step_hook(model):
    def halve(optimizer, args, kwargs):
        model.net.head.bias.data.mul_(0.5)

    model.optimizer.register_step_post_hook(halve)


def change_attribute(model):
    model.net.tau = 4.0


def replace_parameter(model):
    model.net.head.weight.data = model.net.head.weight.data.clone().mul_(2)


def freeze(model):
    model.net.body.requires_grad_(False)


def leave_gradients(model):
    inputs = torch.ones(3, 4, device=next(model.net.parameters()).device)
    (10 * model.net(inputs).square().sum()).backward()


def replace_forward(model):
    def forward(self, inputs):
        return Net.forward(self, inputs) * 0.5

    type(model.net).forward = forward


def replace_method(model):
    type(model.net).soften = lambda self, hidden: hidden / (2 * self.tau)


CHANGES = [
    replace_loss, replace_optimizer, add_forward_hook, add_gradient_hook, add_step_hook,
    change_attribute, replace_parameter, freeze, leave_gradients, replace_forward, replace_method,
]  # fmt: skip


def fit(data, compile_it, change=None, prepare=None, loss_fn=None, **options):
    torch.manual_seed(0)
    net = type("Net", (Net,), {})()  # of a class of its own, which a change may change
    held = net.parameters() if prepare is None else prepare(net)
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, loss_fn or nn.CrossEntropyLoss(), metrics, adam(held), **options)
    callbacks = [] if change is None else [Changes(change)]
    history = model.fit(data, epochs=4, plot=False, compile=compile_it, callbacks=callbacks)
    numbers = history.drop(columns="epoch").to_numpy().tolist()
    return numbers, [tensor.clone() for tensor in net.state_dict().values()]


def assert_same(first, second):
    assert first[0] == second[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.fixture
def engines(monkeypatch):
    return use_stand_in(monkeypatch)


@pytest.fixture
def loader(small):
    return DataLoader(TensorDataset(*small), 20, shuffle=True)


@pytest.mark.parametrize("change", CHANGES)
def test_of_a_callback(loader, engines, change):
    eager = fit(loader, False, change)
    plain = fit(loader, False)
    assert eager[0] != plain[0]  # it makes a difference
    assert_same(eager, fit(loader, True, change))
    assert engines


def test_a_group_that_is_added(loader, engines):
    def only_head(net):
        net.body.requires_grad_(False)
        return net.head.parameters()

    def add_body(model):
        model.net.body.requires_grad_(True)
        model.optimizer.add_param_group({"params": list(model.net.body.parameters())})

    eager = fit(loader, False, add_body, only_head)
    assert_same(eager, fit(loader, True, add_body, only_head))
    assert len(engines) == 2


@pytest.mark.parametrize("inductor", [False, True])
def test_a_layer_that_is_replaced_while_the_optimizer_keeps_the_old_one(
    loader, monkeypatch, capsys, inductor
):
    """Its parameters get no gradient, and the optimizer passes them over."""

    def replace(model):
        torch.manual_seed(1)
        model.net.head = nn.Linear(8, 2)
        model.optimizer.add_param_group({"params": list(model.net.head.parameters())})

    eager = fit(loader, False, replace)
    engines = use_stand_in(monkeypatch, CalledAgain, inductor=inductor)
    numbers, _ = fit(loader, True, replace)
    torch.testing.assert_close(numbers, eager[0], rtol=1e-3, atol=1e-3)
    assert len(engines) == 2
    assert "compile: the training step is left" not in capsys.readouterr().out


def test_gradients_that_nobody_clears(loader, engines, capsys):
    """As in a plain loop, they add up until an optimizer takes them."""

    def add_body(model):
        model.optimizer.add_param_group({"params": list(model.net.body.parameters())})

    eager = fit(loader, False, add_body, lambda net: net.head.parameters())
    assert_same(eager, fit(loader, True, add_body, lambda net: net.head.parameters()))
    assert "since the optimizer does not hold 2 parameters that" in capsys.readouterr().out
    assert not engines


@pytest.mark.parametrize("rate", [0.25, 0.0])
def test_a_layer_that_is_unfrozen(loader, engines, rate):
    def frozen(net):
        net.body.requires_grad_(False)
        return net.parameters()

    def unfreeze(model):
        model.net.body.requires_grad_(True)
        model.optimizer.param_groups[0]["lr"] = rate

    eager = fit(loader, False, unfreeze, frozen)
    assert_same(eager, fit(loader, True, unfreeze, frozen))
    assert len(engines) == 2


def test_an_epoch_runner_that_changes_the_net_each_step(loader, engines):
    class Anneals(EpochRunner):
        def log(self, name):  # called in each step
            if self.stage == "train":
                self.net.tau *= 1.01
            return super().log(name)

    runs = []
    for compile_it in (False, True):
        model_class = type("Annealed", (KerasModel,), {"EpochRunner": Anneals})
        torch.manual_seed(0)
        net = Net()
        model = model_class(net, nn.CrossEntropyLoss(), None, adam(net.parameters()))
        history = model.fit(loader, epochs=2, plot=False, quiet=True, compile=compile_it)
        runs.append((history["train_loss"].tolist(), [p.detach() for p in net.parameters()]))
    assert_same(*runs)


def test_a_loss_that_changes_the_labels(loader, engines, capsys):
    def relabel(preds, labels):
        labels[labels == 1] = 0
        return nn.functional.cross_entropy(preds, labels)

    eager = fit(loader, False, loss_fn=relabel)
    assert_same(eager, fit(loader, True, loss_fn=relabel))
    assert "since net or loss change the batch in place" in capsys.readouterr().out
    assert not engines


def test_a_tensor_that_moves_behind_its_name(small, engines):
    def data():
        return [[part[:40].clone() for part in small]] * 10

    def move(batch):
        batch[0].data = -batch[0].data

    runs = []
    for compile_it in (False, True):
        batches = data()
        runs.append(fit(batches, compile_it, lambda model, batch=batches[0]: move(batch)))
    assert_same(*runs)


def test_a_group_that_is_frozen(loader, engines):
    def two_groups(net):
        net.body.requires_grad_(False)
        return [{"params": net.body.parameters()}, {"params": net.head.parameters()}]

    eager = fit(loader, False, prepare=two_groups)
    assert_same(eager, fit(loader, True, prepare=two_groups))
    assert len(engines) == 1


@pytest.mark.parametrize("num_rows", [130, 30])
def test_no_graph_is_made_for_a_short_last_batch(small, engines, num_rows):
    rows = TensorDataset(*(part[:num_rows] for part in small))
    loader = DataLoader(rows, 20)
    assert_same(fit(loader, False), fit(loader, True))
    assert bool(engines) == (num_rows == 130)
    assert all(len(engine._leaves[0]) == 20 for engine in engines)


def test_sparse_batches_stay_eager(engines, capsys):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, links, inputs):
            return self.layer(links @ inputs)

    torch.manual_seed(0)
    links = torch.eye(10).to_sparse()
    batches = [[links, torch.randn(10, 4), torch.randint(2, (10,))]] * 8
    net = Graph()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, adam(net.parameters()))
    model.fit(batches, epochs=2, plot=False, compile=True)
    assert "since its batches hold tensors that are not plain ones" in capsys.readouterr().out
    assert not engines


def test_only_the_very_same_tensors_come_again():
    places, stays = BatchPlaces(), torch.ones(3)
    for _ in range(3):
        places.note([stays, torch.ones(3)])  # the second may well lie where the last one lay
    assert places.same(2) == [True, False]
    assert places.same(3) == [False, False, False]
    stays.data = torch.zeros(3)
    places.note([stays, stays])
    assert places.same(2) == [False, False]


def test_why_a_graph_would_not_pay(monkeypatch):
    device = torch.device("cpu")
    with pytest.raises(DeclinedError, match="the number of steps is unknown"):
        Worth(device, None).is_known(1)
    worth = Worth(device, 100)
    assert worth.time_eager(lambda: 7) == 7
    assert not worth.is_known(1)
    for _ in range(12):
        worth.time_eager(lambda: time.sleep(0.001))
    with pytest.raises(DeclinedError, match="about 0 s of steps are left"):
        worth.is_known(13)
    monkeypatch.setattr("hotloop.fitting.graph.worth._WORTHWHILE_SECONDS", {"cpu": 0.0})
    assert worth.is_known(13)
    worth._on_host = [0.0] * 13
    with pytest.raises(DeclinedError, match="the device, and not Python"):
        worth.is_known(13)
    for _ in range(11):
        worth.judge(-1e6)
    with pytest.raises(DeclinedError, match="a graph takes"):
        worth.judge(-1e6)


def test_a_function_of_a_scheduler_and_a_metric_that_change_the_net(loader, engines):
    """Their code runs between steps, though the scheduler is torch's."""
    nets = []

    def rate(step):
        if nets:
            nets[-1].tau *= 1.01
        return 1.0

    class Meddles(nn.Module):
        def update(self, preds, labels):
            nets[-1].tau *= 1.01

        def compute(self):
            return 0.0

        def reset(self):
            return None

    for kind in ("scheduler", "metric"):
        runs = []
        for compile_it in (False, True):
            torch.manual_seed(0)
            net = Net()
            optimizer = adam(net.parameters())
            nets[:] = []
            scheduler = None
            if kind == "scheduler":
                scheduler = torch.optim.lr_scheduler.SequentialLR(
                    optimizer,
                    [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
                     torch.optim.lr_scheduler.LambdaLR(optimizer, rate)],
                    [2],
                )  # fmt: skip
            metrics = {"meddles": Meddles()} if kind == "metric" else None
            nets.append(net)
            model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, scheduler)
            history = model.fit(loader, epochs=2, plot=False, quiet=True, compile=compile_it)
            runs.append((history["train_loss"].tolist(), [p.detach() for p in net.parameters()]))
        assert_same(*runs)
