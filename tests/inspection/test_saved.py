"""What autograd keeps for the backward pass is counted once, and to the byte."""

from __future__ import annotations

import torch
from torch import nn

from hotloop import summary
from hotloop.inspection.saved import bytes_kept_for_backward


class TwoInputs(nn.Module):
    """Two inputs, by name, with an activation between the layers."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, y):
        return self.out(torch.relu(self.left(x) + self.right(y)))


class OneDict(TwoInputs):
    """The same, given as one dict."""

    def forward(self, batch):
        return super().forward(batch["x"], batch["y"])


X, Y = torch.rand(5, 4), torch.rand(5, 3)
ACTIVATION = 4 * 5 * 8  # relu's result; the last layer keeps the same piece of memory


def test_a_linear_layer_keeps_its_input_alone():
    assert bytes_kept_for_backward(nn.Linear(4, 3), [X], {}) == 0


def test_each_piece_of_memory_counts_once():
    assert bytes_kept_for_backward(TwoInputs(), [X, Y], {}) == ACTIVATION
    assert bytes_kept_for_backward(OneDict(), [{"x": X, "y": Y}], {}) == ACTIVATION


def test_frozen_layers_keep_nothing():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    assert bytes_kept_for_backward(net, [X], {}) == 0


def test_the_summary_has_it_for_dicts_and_several_inputs():
    for model, inputs in (
        (TwoInputs(), [X, Y]),
        (TwoInputs(), {"x": X, "y": Y}),
        (OneDict(), {"x": X, "y": Y}),
    ):
        text = summary(model, input_data=inputs)
        assert "Kept from forward for backward, measured (MB): 0.000" in text
        assert "Total FLOPs: 720" in text
        assert "[5, 2]" in text
    wide = nn.Sequential(nn.Linear(4, 50_000), nn.ReLU(), nn.Linear(50_000, 1))
    text = summary(wide, input_data=X)
    assert f"measured (MB): {4 * 5 * 50_000 / 1e6:.3f}" in text
    gradients = sum(p.nbytes for p in wide.parameters()) / 1e6
    assert f"Gradients of the parameters (MB): {gradients:.3f}" in text
