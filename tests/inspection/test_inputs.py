"""How inputs reach a model that is looked at."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import nn

from hotloop import flop_summary, summary
from hotloop.errors import SettingsError
from hotloop.inspection.inputs import random_inputs

X = torch.rand(5, 4)
FLOPS_OF_ONE_CALL = 2 * 5 * 4 * 3


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)


class Keyword(Base):
    def forward(self, x, mode=None, device=None):  # torchinfo's own names
        return self.layer(x)


class AnyKeywords(Base):
    def forward(self, **inputs):
        return self.layer(inputs["x"])


class OneDict(Base):
    def forward(self, batch, mask=None):
        return {"out": self.layer(batch["x"])}


class OneList(Base):
    def forward(self, parts):
        return self.layer(parts[0]) + self.layer(parts[1])


class Two(Base):
    def forward(self, left, right):
        return self.layer(left) + self.layer(right)


class Maybe(Base):
    def forward(self, x, mask, name, *, scale=1.0):
        assert mask is None
        assert name == "text"
        return self.layer(x) * scale


@pytest.mark.parametrize(
    ("model", "inputs", "num_calls"),
    [
        (Keyword(), {"input_data": X}, 1),
        (Keyword(), {"input_data": {"x": X}}, 1),
        (Keyword(), {"input_data": {"x": X, "mode": None}, "device": None}, 1),
        (Keyword(), {"x": X, "mode": "any"}, 1),
        (AnyKeywords(), {"input_data": {"x": X}}, 1),
        (OneDict(), {"input_data": {"x": X}}, 1),
        (OneDict(), {"input_data": UserDict(x=X)}, 1),
        (OneDict(), {"input_data_args": ({"x": X},)}, 1),
        (nn.Sequential(OneDict()), {"input_data": {"x": X}}, 1),
        (OneList(), {"input_data": [X, X]}, 2),
        (Two(), {"input_data": [X, X]}, 2),
        (Two(), {"input_data": (X, X)}, 2),
        (Two(), {"input_data": {"left": X, "right": X}}, 2),
        (Two(), {"input_data": {"left": X}, "right": X}, 2),
        (Two(), {"input_data_args": (X, X)}, 2),
        (Two(), {"input_data": X, "input_data_args": (X,)}, 2),
        (Two(), {"input_data": X, "right": X}, 2),
        (Two(), {"input_shape": [(4,), (4,)], "batch_size": 5}, 2),
        (Maybe(), {"input_data_args": (X, None, "text"), "scale": 0.5}, 1),
        (Keyword(), {"input_data": X.numpy()}, 1),
    ],
)
def test_inputs_reach_forward(model, inputs, num_calls):
    assert f"Total FLOPs: {num_calls * FLOPS_OF_ONE_CALL:,}\n" in summary(model, **inputs)


def test_torchkeras_positions():
    assert "Total params: 15\n" in summary(Two(), X, None, None, torch.FloatTensor, -1, X)
    assert "[2, 3]" in summary(nn.Linear(4, 3), None, None, (4,))


def test_inputs_of_flop_summary():
    assert flop_summary(Two(), (X, X)) == 2 * FLOPS_OF_ONE_CALL
    assert flop_summary(Two(), [X, X]) == 2 * FLOPS_OF_ONE_CALL
    assert flop_summary(Two(), {"left": X, "right": X}) == 2 * FLOPS_OF_ONE_CALL
    assert flop_summary(OneDict(), {"x": X}) == FLOPS_OF_ONE_CALL


def test_random_inputs():
    state = torch.get_rng_state()
    (image,) = random_inputs((1, 28, 28), torch.FloatTensor, -1)
    assert (image.shape, image.dtype) == ((2, 1, 28, 28), torch.float32)
    (image,) = random_inputs([1, 28, 28], torch.bfloat16, 3)
    assert (image.shape, image.dtype) == ((3, 1, 28, 28), torch.bfloat16)
    left, right = random_inputs([(4,), (7,)], torch.LongTensor, 1)
    assert (left.shape, right.shape, right.dtype) == ((1, 4), (1, 7), torch.int64)
    assert random_inputs(None, torch.FloatTensor, 1) == []
    assert torch.equal(state, torch.get_rng_state())


def test_a_compiled_model_is_shown_as_the_model_inside():
    compiled = torch.compile(Keyword(), backend="eager")
    assert "\nKeyword " in summary(compiled, {"x": X})
    assert flop_summary(compiled, {"x": X}) == FLOPS_OF_ONE_CALL


def test_no_input():
    with pytest.raises(SettingsError, match="no input"):
        summary(Two())
    with pytest.raises(SettingsError, match="no input"):
        flop_summary(Two(), None)
