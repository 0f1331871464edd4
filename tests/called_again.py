"""The engines of CUDA graphs on a CPU, with captures that are replayed there."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hotloop.fitting.graph import graphed
from hotloop.fitting.graph.build import build_replayed


class CalledAgain:
    """Replays by calling; results stay at their first addresses, as a graph's do."""

    def __init__(self, function):
        self.function = function
        self.results = function()

    def replay(self):
        pairs = zip(tensors_of(self.results), tensors_of(self.function()), strict=True)
        for kept, new in pairs:
            kept.copy_(new)


class Recorded:
    """Replays the operators that were called, on the memory that they used; runs no other Python.

    So it sees no change of an attribute, a module or a tensor's place, as a CUDA graph does not.
    """

    def __init__(self, function):
        with _Recorder() as recorder:
            self.results = function()
        self.calls = recorder.calls

    @torch.no_grad()
    def replay(self):
        for operator, args, kwargs, outputs in self.calls:
            for kept, new in zip(outputs, tensors_of(operator(*args, **kwargs)), strict=True):
                if kept.data_ptr() != new.data_ptr():  # else it was written in place
                    kept.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        inputs, outputs = tensors_of((args, kwargs)), tensors_of(result)
        places = {place_of(tensor) for tensor in inputs if tensor.numel()}
        is_view = any(place_of(tensor) in places for tensor in outputs if tensor.numel())
        if operator._schema.is_mutable or not is_view:
            alias = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))
            self.calls.append((operator, *alias, [tensor.detach() for tensor in outputs]))
        return result


def place_of(tensor):
    return tensor.untyped_storage().data_ptr()


def tensors_of(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def use_stand_in(monkeypatch, capture=Recorded, inductor=False):
    """Let fits with ``compile=True`` use it; return the list that its engines are added to.

    Args:
        capture: records a step.
        inductor: as ``compile="inductor"`` has it on CUDA; needs ``CalledAgain``, since what
            Inductor writes for a CPU calls no operators.
    """
    engines, known = [], []

    def build(step, leaves):
        if step not in known:
            known.append(step)
            step.inductor = inductor
        engines.append(build_replayed(step, leaves, capture))
        return engines[-1]

    monkeypatch.setattr(graphed, "build_engine", build)
    return engines
