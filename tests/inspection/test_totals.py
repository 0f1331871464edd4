"""The totals under the layer table, beside torchinfo's own."""

from __future__ import annotations

import pytest
import torch
import torchinfo
from builders import make_conv_net
from torch import nn

from hotloop import summary


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, indices):
        return self.out(self.embedding(indices))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(self.first, nn.ReLU(), self.first)

    def forward(self, inputs):
        return self.body(self.first(inputs))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(10, 10)
        self.scale = nn.Parameter(torch.ones(7), requires_grad=False)

    def forward(self, inputs):
        return self.used(inputs)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (make_conv_net(), torch.rand(2, 1, 28, 28)),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), torch.rand(3, 4)),
        (nn.LSTM(4, 3), torch.rand(2, 5, 4)),
        (Unused(), torch.rand(5, 4)),
    ],
)
def test_as_torchinfo(model, inputs):
    text = summary(model, inputs)
    known = torchinfo.summary(model, input_data=inputs, verbose=0)
    assert f"Total params: {known.total_params:,}\n" in text
    assert f"Trainable params: {known.trainable_params:,}\n" in text
    frozen = known.total_params - known.trainable_params
    assert f"Non-trainable params: {frozen:,}\n" in text
    assert f"Total mult-adds: {known.total_mult_adds:,}\n" in text
    megabytes = known.total_output_bytes / 1e6
    assert f"Forward/backward pass size (MB): {megabytes:.3f}\n" in text


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(Tied(), torch.randint(10, (2, 3))), (Shared(), torch.rand(5, 4))],
)
def test_what_layers_share_counts_once(model, inputs):
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"Total params: {num_parameters:,}\n" in summary(model, inputs)


def test_sizes_in_memory():
    model = nn.Linear(1000, 500).double()
    text = summary(model, torch.rand(10, 1000, dtype=torch.float64))
    assert "Input size (MB): 0.080\n" in text
    assert "Params size (MB): 4.004\n" in text
    assert "Total FLOPs: 10,000,000\n" in text
