"""Calling the fused kernel directly is bit for bit ``optimizer.step()``."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import make_mlp
from torch import nn

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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_bits_whatever_changes_on_the_way(name):
    net = make_mlp()
    twin = copy.deepcopy(net)
    optimizer, plain = (OPTIMIZERS[name](n.parameters()) for n in (net, twin))
    direct = DirectStep(optimizer)
    extra = [nn.Parameter(torch.ones(3)) for _ in range(2)]
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
            if step == 11:
                held.add_param_group({"params": [extra[module is twin]]})
            if step >= 11:
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
