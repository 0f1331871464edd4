"""Layer by layer: ``exact`` is the plain loop bit for bit, the default is it but for rounding."""

from __future__ import annotations

import pytest
import torch
from plain_loop import plain_loop
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel


class FunctionalDropout(nn.Module):
    def forward(self, images):
        return functional.dropout(images, 0.2, self.training)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images):
        hidden = functional.relu(self.norm(self.first(images)))
        return functional.relu(images + self.second(hidden))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, images):
        return images * self.gate(images)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)

    def forward(self, images):
        return self.layer(images.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]


class Last(nn.Module):
    """The last state of a recurrent layer that reads an image row by row."""

    def __init__(self, kind, **options):
        super().__init__()
        self.layer = kind(8 * 10, 6, batch_first=True, **options)

    def forward(self, images):
        rows = images.transpose(1, 2).flatten(2)
        return self.layer(rows)[0][:, -1, :, None, None]


LAYERS = {
    "avg pool": lambda: nn.AvgPool2d(2),
    "max pool": lambda: nn.MaxPool2d(2),
    "overlapping pool": lambda: nn.MaxPool2d(3, 2, 1),
    "fractional pool": lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5),
    "lp pool": lambda: nn.LPPool2d(2, 2),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d(4),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d(4),
    "batch norm": lambda: nn.BatchNorm2d(8),
    "group norm": lambda: nn.GroupNorm(4, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "dropout": lambda: nn.Dropout(0.2),
    "dropout, in place": lambda: nn.Dropout(0.2, inplace=True),
    "dropout of channels": lambda: nn.Dropout2d(0.2),
    "alpha dropout": lambda: nn.AlphaDropout(0.2),
    "functional dropout": FunctionalDropout,
    "rrelu": nn.RReLU,
    "prelu": nn.PReLU,
    "mish": nn.Mish,
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "dilated": lambda: nn.Conv2d(8, 8, 3, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 2, 2),
    "pointwise": lambda: nn.Conv2d(8, 8, 1),
    "upsampling": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "padding": lambda: nn.ReflectionPad2d(2),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "residual": Residual,
    "gated": Gated,
    "attention": Attention,
    "lstm": lambda: Last(nn.LSTM, num_layers=2, dropout=0.2),
    "gru, both ways": lambda: Last(nn.GRU, bidirectional=True),
}


def make_net(name):
    """Return a net with the layer between convolutions that may leave out edges."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 4), LAYERS[name](), nn.Flatten(),
        nn.LazyLinear(10),
    ).double()  # fmt: skip
    net.eval()(torch.rand(2, 3, 29, 29, dtype=torch.float64))
    return net


def make_data():
    torch.manual_seed(1)
    images, labels = torch.rand(44, 3, 29, 29, dtype=torch.float64), torch.randint(0, 10, (44,))
    return TensorDataset(images, labels)


def make_loaders():
    """Return loaders, with the seed of what they and the net will draw."""
    data = make_data()
    torch.manual_seed(2)
    return DataLoader(data, 16, shuffle=True), DataLoader(data, 16)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def train_by_hand(name):
    net = make_net(name)
    rows, _ = plain_loop(net, make_loaders(), 2, sgd)
    return [(row["train_loss"], row["val_loss"]) for row in rows]


def train_with_hotloop(name, exact):
    net = make_net(name)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, sgd(net.parameters()))
    history = model.fit(
        *make_loaders(), epochs=2, patience=2, cpu=True, plot=False, quiet=True, exact=exact
    )
    return [tuple(row) for row in history[["train_loss", "val_loss"]].to_numpy().tolist()]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_learns_what_it_learns_in_the_plain_loop(name):
    expected = train_by_hand(name)
    assert train_with_hotloop(name, exact=True) == expected
    found = train_with_hotloop(name, exact=False)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=1e-12)
