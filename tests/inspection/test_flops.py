"""Operations of layers whose kernels torch's own counter leaves out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hotloop import flop_summary
from hotloop.inspection.flops import _recurrent_flops


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}])
def test_recurrent_layers(kind, options):
    model = kind(4, 3, batch_first=True, **options)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert flop_summary(model, torch.rand(2, 5, 4)) == 2 * 2 * 5 * matrices


def test_packed_rows():
    assert _recurrent_flops([7, 4], [[12, 4], [12, 3], [12], [12]]) == 2 * 7 * (12 * 4 + 12 * 3)


class Attention(nn.Module):
    def forward(self, query):
        return nn.functional.scaled_dot_product_attention(query, query, query)


def test_attention():
    batch, heads, length, width = 2, 3, 16, 8
    expected = 2 * (2 * batch * heads * length * length * width)  # Q K^T, and its product with V
    assert flop_summary(Attention(), torch.rand(batch, heads, length, width)) == expected


def test_transformer_layer_has_its_parts(capsys):
    """Its fused kernel for inference would show, and count, nothing."""
    batch, length, width, inner = 2, 5, 8, 16
    model = nn.TransformerEncoderLayer(width, 2, inner, batch_first=True)
    projections = 2 * batch * length * 4 * width * width
    products = 2 * 2 * batch * length * length * width
    feed_forward = 2 * batch * length * 2 * width * inner
    total = flop_summary(model, torch.rand(batch, length, width))
    assert total == projections + products + feed_forward
    assert "TransformerEncoderLayer.self_attn" in capsys.readouterr().out


def test_table(capsys):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))
    total = flop_summary(model, torch.rand(3, 4))
    assert total == 2 * 3 * (4 * 8 + 8 * 2)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "-" not in line]
    assert rows == [
        ["Module", "FLOPs", "Share"],
        ["Sequential", "288", "100.0%"],
        ["Sequential.0", "192", "66.7%"],
        ["Sequential.2", "96", "33.3%"],
        ["Sequential.2.0", "96", "33.3%"],
        ["Total", "288", "100.0%"],
    ]


def test_nothing_to_count(capsys):
    assert flop_summary(nn.ReLU(), torch.rand(3)) == 0
    assert "Total       0" in capsys.readouterr().out
