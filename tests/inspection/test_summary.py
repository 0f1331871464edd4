"""The layer table: right numbers, and a model left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import make_conv_net
from torch import nn

from hotloop import flop_summary, summary
from hotloop.errors import SettingsError


def test_table_of_the_main_net(capsys):
    net = make_conv_net()
    text = summary(net, input_data=torch.rand(2, 1, 28, 28))
    num_parameters = sum(p.numel() for p in net.parameters())
    assert f"Total params: {num_parameters:,}" in text
    assert "[2, 64, 4, 4]" in text
    assert text in capsys.readouterr().out
    assert "[2, 32, 26, 26]" in summary(net, input_shape=(1, 28, 28))


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    net[2].eval()
    inputs = torch.rand(3, 4)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    summary(net, input_shape=(4,))
    flop_summary(net, inputs)
    assert [module.training for module in net.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in net.modules())


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.shared(left) + self.shared(right)


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, batch):
        return self.layer(batch["x"])


def test_several_inputs_and_dicts():
    x = torch.rand(5, 4)
    for inputs in ({"input_data_args": (x, x)}, {"input_data": {"left": x, "right": x}}):
        assert "Total params: 15" in summary(Two(), **inputs)  # a shared layer counts once
    assert "Total params: 15" in summary(One(), input_data={"x": x})
    with pytest.raises(SettingsError, match="no input"):
        summary(Two())
    with pytest.raises(SettingsError, match=r"torch\.nn\.Module, and this is a dict"):
        summary({}, input_data=x)


def test_flops_of_a_product(capsys):
    assert flop_summary(nn.Linear(4, 3), torch.rand(5, 4)) == 2 * 5 * 4 * 3
    assert flop_summary(Two(), (torch.rand(5, 4), torch.rand(5, 4))) == 2 * 2 * 5 * 4 * 3
    assert "FLOP" in capsys.readouterr().out
