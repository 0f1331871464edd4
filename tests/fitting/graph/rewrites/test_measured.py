"""What is measured, as far as a CPU shows it: times are those of ``tests/gpu/test_rewrites.py``."""

from __future__ import annotations

import pytest
import torch
from traced import trace

from hotloop.fitting.graph.rewrites import measured
from hotloop.fitting.graph.rewrites.measured import each_form_once, is_faster, random_like


@pytest.mark.parametrize("tensor", [
    torch.empty(3, 4),
    torch.empty(4, 3).t(),
    torch.empty(2, 1, 5).expand(2, 6, 5),  # an image of one channel, used as one of six
    torch.empty(()).expand(2, 3),  # the gradient of a sum
    torch.empty(0, 3),
    torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    torch.empty(9)[None, :3],
    torch.empty(3, dtype=torch.bfloat16),
])  # fmt: skip
def test_random_numbers_like_any_tensor(tensor):
    before = torch.get_rng_state()
    found = random_like(tensor)
    assert (found.shape, found.stride(), found.dtype) == (
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )
    assert found.isfinite().all()
    assert torch.equal(before, torch.get_rng_state())


class Elsewhere:
    """Like a tensor on a device that is not there."""

    device, shape, dtype = torch.device("cuda"), torch.Size([2]), torch.float32

    def numel(self):
        return 2

    def stride(self):
        return (1,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the device")
def test_what_cannot_be_measured_is_not_faster():
    def never(*tensors):
        raise AssertionError("it was called")

    assert not is_faster(never, never, [torch.empty(2)])  # a CPU
    assert not is_faster(never, never, [Elsewhere()])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_an_error_while_measuring(error, monkeypatch):
    def fails(calls, device):
        raise error("CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(measured, "fastest", fails)
    monkeypatch.setattr(measured, "random_like", lambda fake: torch.zeros(2))
    assert not is_faster(torch.neg, torch.neg, [Elsewhere()])
    monkeypatch.setattr(measured, "fastest", lambda calls, device: [0.5, 1.0])
    assert is_faster(torch.neg, torch.neg, [Elsewhere()])
    monkeypatch.setattr(measured, "fastest", lambda calls, device: [0.95, 1.0])
    assert not is_faster(torch.neg, torch.neg, [Elsewhere()])


def test_each_form_is_asked_for_once():
    def products(first, second, third):
        return first @ second, first @ (second + 1), second.t() @ second, third @ second

    tensors = [torch.rand(3, 4), torch.rand(4, 3), torch.rand(4, 3).t()]
    asked = []
    decide = each_form_once(lambda node: not asked.append(node))
    nodes = trace(products, tensors).graph.find_nodes(
        op="call_function", target=torch.ops.aten.mm.default
    )
    assert all(decide(node) for node in nodes)
    assert len(nodes) == 4
    assert len(asked) == 2  # third @ second has another memory layout than first @ second
