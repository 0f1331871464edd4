"""Calling the fused kernel directly is bit for bit ``optimizer.step()``."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.fitting.direct_step import DirectStep

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "not fused": lambda p: torch.optim.Adam(p, lr=0.1),
}


def backward(net, step):
    torch.manual_seed(step)
    nn.functional.cross_entropy(net(torch.randn(8, 4)), torch.randint(2, (8,))).backward()


def takes_groups(name):
    """Whether a group may be added: not to Adagrad of torch 2.11, which cannot step on it."""
    added, first = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = OPTIMIZERS[name]([first])
    optimizer.add_param_group({"params": [added]})
    added.grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_bits_whatever_changes_on_the_way(name):
    net = make_mlp()
    twin = copy.deepcopy(net)
    optimizer, plain = (OPTIMIZERS[name](n.parameters()) for n in (net, twin))
    direct = DirectStep(optimizer)
    extra = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    adds = name != "adagrad" or takes_groups(name)
    for step in range(14):
        for module, held in ((net, optimizer), (twin, plain)):
            group = held.param_groups[0]
            group["lr"] = 0.01 * (step + 1)
            if step == 3 and "betas" in group:
                group["betas"] = (0.8, 0.99)
            if step == 5:
                module[0].weight.requires_grad_(False)  # frozen: no gradient from here
            if step == 7:
                held.load_state_dict(copy.deepcopy(held.state_dict()))
            if step == 9:
                module[0].weight.requires_grad_(True)
            if step == 11 and adds:
                held.add_param_group({"params": [extra[module is twin]]})
            if step >= 11 and adds:
                extra[module is twin].grad = torch.ones(3) * step
            backward(module, step)
        direct.step()
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.equal(a, b), step
    assert torch.equal(*extra)
    first, second = optimizer.state_dict()["state"], plain.state_dict()["state"]
    for key, state in first.items():
        for entry, value in state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, second[key][entry])


def test_hooks_and_replaced_steps_are_called():
    net = make_mlp()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    direct, calls = DirectStep(optimizer), []
    for _ in range(2):
        backward(net, 0)
        direct.step()
    handle = optimizer.register_step_pre_hook(lambda *_: calls.append("hook"))
    direct.step()
    handle.remove()
    optimizer.step = lambda: calls.append("own step")
    direct.step()
    assert calls == ["hook", "own step"]


def test_a_scheduler_sees_that_the_optimizer_stepped(recwarn):
    net = make_mlp()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    direct = DirectStep(optimizer)
    for _ in range(3):
        backward(net, 0)
        direct.step()
        scheduler.step()
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


class Branches(nn.Module):
    """Uses its second layer in every other step alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.num_calls = nn.Linear(4, 2), nn.Linear(4, 2), 0

    def forward(self, inputs):
        self.num_calls += 1
        uses = self.num_calls % 2 == 0
        return self.first(inputs) + self.second(inputs) if uses else self.first(inputs)


class SparseTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(20, 4)), nn.Linear(4, 2)

    def forward(self, inputs):
        rows = inputs.abs().mul(5).long().clamp(max=19)
        return self.head(nn.functional.embedding(rows, self.table, sparse=True).mean(dim=1))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}],
)
@pytest.mark.parametrize(("make", "kind", "settings"), [
    (Branches, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2}),
    (Branches, torch.optim.Adam, {}),
    (SparseTable, torch.optim.SGD, {}),
    (SparseTable, torch.optim.Adagrad, {}),
])  # fmt: skip
def test_gradients_that_fused_kernels_refuse(small, make, kind, settings, options):
    results = []
    for exact in (True, False):
        torch.manual_seed(0)
        net = make()
        optimizer = kind(net.parameters(), lr=0.05, **settings)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        loader = DataLoader(TensorDataset(*small), 40)
        model.fit(loader, epochs=2, cpu=True, plot=False, quiet=True, exact=exact, **options)
        results.append([p.detach().clone() for p in net.parameters()])
        assert not optimizer.param_groups[0].get("fused")  # put back
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_unfrozen_meets_momentum(small):
    class Unfreezes:
        def on_validation_epoch_end(self, model):
            model.net[0].requires_grad_(True)

    results = []
    for options in ({"exact": True}, {}, {"compile": True}):
        torch.manual_seed(0)
        net = make_mlp()
        net[0].requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        loader = DataLoader(TensorDataset(*small), 40)
        model.fit(
            loader, epochs=3, cpu=True, plot=False, quiet=True, callbacks=[Unfreezes()], **options
        )
        results.append([p.detach().clone() for p in net.parameters()])
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_a_zero_grad_of_the_users_own_is_called(small, exact):
    """With zeros in the place of None, Adam steps layers that were not used."""

    def train_by_hand(net, optimizer, batches):
        for inputs, labels in batches:
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    weights = []
    batches = list(DataLoader(TensorDataset(*small), 40))
    for by_hand in (True, False):
        torch.manual_seed(0)
        net = Branches()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        optimizer.zero_grad = functools.partial(optimizer.zero_grad, set_to_none=False)
        if by_hand:
            train_by_hand(net, optimizer, batches)
        else:
            model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
            model.fit(batches, epochs=1, cpu=True, plot=False, quiet=True, exact=exact)
        weights.append([p.detach().clone() for p in net.parameters()])
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
