"""Which random numbers are drawn before a compiled step."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.draws import take_out_draws


def trace(function, *inputs):
    with FakeTensorMode() as mode:
        return make_fx(function)(*(mode.from_tensor(tensor) for tensor in inputs))


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_a_dropout_is_parted_into_its_mask_and_a_product(probability):
    def step(inputs):
        kept, mask = torch.native_dropout(inputs.relu(), probability, True)
        return kept + 1, mask

    inputs = torch.randn(40, 30)
    graph = trace(step, inputs)
    (draw,) = take_out_draws(graph)
    torch.manual_seed(0)
    expected = step(inputs)
    torch.manual_seed(0)
    found = graph(inputs, draw())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not graph.graph.find_nodes(
        op="call_function", target=torch.ops.aten.native_dropout.default
    )


def test_a_dropout_that_is_switched_off_draws_nothing():
    def step(inputs):
        return torch.native_dropout(inputs, 0.3, False)[0], torch.rand_like(inputs)

    graph = trace(step, torch.randn(4))
    torch.manual_seed(0)
    (draw,) = take_out_draws(graph)
    assert torch.equal(draw(), torch.manual_seed(0) and torch.rand(4))


def test_attention_without_dropout_draws_nothing():
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    def step(inputs, probability):
        found = operator(inputs, inputs, inputs, probability, False)[0]
        return found, torch.rand_like(inputs)

    graph = trace(lambda inputs: step(inputs, 0.0), torch.randn(2, 2, 8, 16))
    assert len(take_out_draws(graph)) == 1  # of rand_like
    graph = trace(lambda inputs: step(inputs, 0.1), torch.randn(2, 2, 8, 16))
    with pytest.raises(DeclinedError, match="depends on other numbers"):
        take_out_draws(graph)
