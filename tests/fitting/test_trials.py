"""What is tried on a copy before training leaves no trace in it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hotloop import KerasModel

GENERATOR = torch.Generator()


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def change(self, images):
        return images

    def forward(self, images):
        return self.head(self.conv(self.change(images)).relu().mean((2, 3)))


class InPlace(Conv):
    def change(self, images):
        return images.sub_(0.13).div_(0.3)


class PythonsRandom(Conv):
    def change(self, images):
        return images * random.uniform(0.5, 1.5)


class NumpysRandom(Conv):
    def change(self, images):
        return images * float(np.random.uniform(0.5, 1.5))


class OwnGenerator(Conv):
    def change(self, images):
        return images * (0.5 + torch.rand((), generator=GENERATOR))


class Narrow(nn.Module):
    """Of a full batch of few columns, which are stored column by column."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, rows):
        return self.layer(rows) * random.uniform(0.5, 1.5)


class Uncertain(nn.Module):
    """A loss with a parameter, and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.scale, self.num_calls = nn.Parameter(torch.zeros(())), 0

    def forward(self, preds, labels):
        self.num_calls += 1
        return cross_entropy(preds * torch.exp(-self.scale), labels)


def as_function(loss):
    return lambda preds, labels: loss(preds, labels)


def train(net_class, loss_form, exact):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    GENERATOR.manual_seed(0)
    net, loss = net_class(), Uncertain()
    shape, times = ((20_000, 2), 4) if net_class is Narrow else ((8, 1, 9, 9), 2)
    batch = torch.randn(shape), torch.randint(0, 3, shape[:1])
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], 0.1)
    # a function's parameters are known to the optimizer through the loss as a further argument
    model = KerasModel(net, loss_form(loss), None, optimizer, loss=loss)
    history = model.fit([batch] * times, epochs=1, cpu=True, plot=False, quiet=True, exact=exact)
    numbers = [*history["train_loss"], loss.scale.item(), *net.state_dict().values()]
    return [torch.as_tensor(n, dtype=torch.float64) for n in numbers], loss.num_calls, batch


@pytest.mark.parametrize("loss_form", [lambda loss: loss, as_function])
@pytest.mark.parametrize(
    "net_class", [Conv, InPlace, PythonsRandom, NumpysRandom, OwnGenerator, Narrow]
)
def test_layouts_are_tried_without_a_trace(net_class, loss_form):
    exact, num_exact, given = train(net_class, loss_form, True)
    usual, num_usual, given_too = train(net_class, loss_form, False)
    torch.testing.assert_close(usual, exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(given, given_too)
    assert num_exact == num_usual or loss_form is as_function  # a function has no copy
