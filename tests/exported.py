"""Nets to export."""

from __future__ import annotations

from torch import nn

from hotloop import KerasModel


def make_conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(),
        nn.Linear(144, 3),
    )  # fmt: skip


class Tagger(nn.Module):
    """Takes dicts of any length and gives several outputs."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, input_ids, mask=None):
        hidden = self.tokens(input_ids) * mask[..., None]
        return {"tags": self.head(hidden), "lengths": mask.sum(dim=1)}


def export(net, path, data, **options):
    return KerasModel(net, nn.CrossEntropyLoss()).export(path, data, **options)
