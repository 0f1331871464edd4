"""The direct call of torch's engine is ``loss.backward()``, bit for bit and error for error."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn

from hotloop.fitting.backward import run_backward


def make_loss(net, inputs):
    return nn.functional.cross_entropy(net(inputs), torch.arange(len(inputs)) % 2)


def test_gradients_are_bitwise_those_of_backward():
    torch.manual_seed(0)
    net, inputs = make_mlp(), torch.randn(30, 4)
    grads = []
    for run in (torch.Tensor.backward, run_backward, run_backward):
        net.zero_grad()
        for _ in range(2):  # the second pass adds to the first
            run(make_loss(net, inputs))
        grads.append([p.grad.clone() for p in net.parameters()])
    for plain, direct, again in zip(*grads, strict=True):
        assert torch.equal(plain, direct)
        assert torch.equal(plain, again)


def test_a_function_that_writes_into_its_gradient_spoils_no_later_pass():
    class Doubles(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad.mul_(2)

    weight = torch.tensor(3.0, requires_grad=True)
    for _ in range(2):
        weight.grad = None
        run_backward(Doubles.apply(weight))
        assert weight.grad == 2


@pytest.mark.parametrize(
    "make", [lambda: torch.tensor(1.0), lambda: torch.ones(2, requires_grad=True) * 2]
)
def test_what_torch_refuses_is_refused_in_its_words(make):
    messages = []
    for run in (torch.Tensor.backward, run_backward):
        with pytest.raises(RuntimeError) as caught:
            run(make())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_backward_in_the_place_of_torchs_is_called(monkeypatch):
    calls, plain = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: (calls.append(1), plain(self)))
    run_backward(torch.ones((), requires_grad=True) * 2)
    assert calls == [1]


def test_a_tensor_of_a_type_of_its_own_goes_its_way():
    calls = []

    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            calls.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    weight = torch.ones((), requires_grad=True)
    run_backward((weight * 2).as_subclass(Mine))
    assert "backward" in calls
    assert weight.grad == 2
