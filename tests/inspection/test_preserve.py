"""A model that was looked at is as it was, and its failures name the inputs."""

from __future__ import annotations

import copy
import gc
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from hotloop import flop_summary, summary
from hotloop.errors import HotloopError, ShapeError
from hotloop.inspection.preserve import naming_inputs

X = torch.rand(5, 4)


class Restless(nn.Module):
    """Replaces one buffer, changes another in place, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("changed", torch.zeros(3))

    def forward(self, inputs):
        self.replaced = self.replaced + 1
        self.changed += random.random() + np.random.rand()
        return inputs + torch.rand(4)


@pytest.mark.parametrize("look", [summary, flop_summary])
def test_buffers_and_random_numbers(look):
    model = Restless()
    tensors = dict(model.named_buffers())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    look(model, X)
    assert all(getattr(model, name) is tensor for name, tensor in tensors.items())
    assert not model.replaced.any()
    assert not model.changed.any()
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())


@pytest.mark.parametrize("look", [summary, flop_summary])
def test_modes_gradients_and_hooks_also_after_a_failure(look):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[2].eval()
    model(X).sum().backward()
    gradient, state = model[0].weight.grad.clone(), copy.deepcopy(model.state_dict())
    look(model, X)
    with pytest.raises(ShapeError, match=r"input 1 float32 \(5, 7\).*cannot be multiplied"):
        look(model, torch.rand(5, 7))
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.equal(model[0].weight.grad, gradient)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_model_is_not_kept_alive():
    model = nn.Linear(4, 3)
    alive = weakref.ref(model)
    summary(model, X)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")  # older torch
def test_lazy_layers_are_initialised():
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    assert "Total params: 29\n" in summary(model, X)
    assert model.training


def test_a_keyword_input_is_named():
    with pytest.raises(ShapeError, match=r"input float32 \(5, 7\)"):
        flop_summary(nn.Linear(4, 3), {"input": torch.rand(5, 7)})


def test_what_is_no_fault_of_the_inputs_passes():
    for error in (torch.OutOfMemoryError("full"), HotloopError("own")):
        wrapper = RuntimeError("Failed to run torchinfo. See above")
        wrapper.__cause__ = error
        for raised in (error, wrapper):
            with pytest.raises(type(error)) as caught, naming_inputs([X], {}):
                raise raised
            assert caught.value is error
