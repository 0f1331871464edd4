"""Updates in pieces: the same elements, each once, beside what belongs to them."""

from __future__ import annotations

import pytest
import torch

from hotloop.fitting.fused_kernels import in_pieces


def number(shapes):
    """Return tensors of the shapes whose elements are all different."""
    first, tensors = 0, []
    for shape in shapes:
        values = torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.float64)
        tensors.append(values.reshape(shape))
        first += len(values)
    return tensors


@pytest.mark.parametrize("shapes", [
    [(64, 32, 5, 5), (64,), (10, 32)],
    [(5000, 7), ()],
    [(), (5000, 7)],
    [(3,), (4,)],
    [(0,), (70_000,)],
    [(100, 100)] * 40,
    [(2_000_000,)],
])  # fmt: skip
def test_every_element_once_and_beside_its_own(shapes, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    params = number(shapes)
    grads = [param.clone() for param in params]
    steps = [torch.tensor(float(place)) for place in range(len(params))]
    parts, beside, empty, counts = in_pieces([params, grads, []], steps)
    assert empty == []
    assert torch.equal(
        torch.cat([part.flatten() for part in parts]), torch.cat([p.flatten() for p in params])
    )
    assert all(torch.equal(a, b) for a, b in zip(parts, beside, strict=True))
    assert len(counts) == len(parts)
    assert [id(count) for count in dict.fromkeys(counts)] == [id(step) for step in steps]
    per_launch = 64  # of two lists
    assert -(-len(parts) // per_launch) == -(-len(params) // per_launch)


def test_large_tensors_are_parted_and_share_their_memory(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm
    (param,) = params = number([(64, 32, 5, 5)])
    parts, steps = in_pieces([params], [torch.tensor(1.0)])
    assert 20 <= len(parts) <= 30
    assert all(step is steps[0] for step in steps)
    for part in parts:
        assert part.data_ptr() % 16 == 0
        part.zero_()
    assert not param.any()


@pytest.mark.parametrize(("version", "num_lists", "num_pieces"), [
    ("12.8", 2, 62), ("12.8", 4, 35), ("12.8", 5, 29), ("13.0", 4, 245),
])  # fmt: skip
def test_as_many_as_one_launch_takes(version, num_lists, num_pieces, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", version)
    lists = [[torch.zeros(1_000_000)] for _ in range(num_lists)]
    assert len(in_pieces(lists, [torch.tensor(1.0)])[0]) == num_pieces


def test_memory_layouts():
    last = torch.randn(64, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    parts, beside = in_pieces([[last], [last.clone(memory_format=torch.preserve_format)]])
    assert len(parts) > 1
    assert all(torch.equal(a, b) for a, b in zip(parts, beside, strict=True))
    other = last.contiguous()  # its elements lie in another order
    assert [len(held) for held in in_pieces([[last], [other]])] == [1, 1]
    gaps = torch.zeros(300, 300)[:, ::2]
    assert [len(held) for held in in_pieces([[gaps], [gaps]])] == [1, 1]
