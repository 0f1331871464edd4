"""Another memory layout draws the same random numbers, or is not used."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.fitting.draws import DrawsOutOfOrder, DropoutInOrder, draw_as_before, draw_in_order


class Functional(nn.Module):
    def forward(self, images):
        return functional.dropout(images, 0.3, self.training)


class Noise(nn.Module):
    def forward(self, images):
        return images + torch.randn_like(images) if self.training else images


class PlainNoise(nn.Module):
    """Draws for a shape, whatever the images' memory is like."""

    def forward(self, images):
        return images + torch.randn(images.shape, dtype=images.dtype)


class Watch:
    """Notes the memory layout of the first weights, and what the dropout layer is."""

    def on_train_epoch_end(self, model):
        self.channels_last = not model.net[0].weight.is_contiguous()
        self.kind = type(model.net[2])


def train(make_layer, **options):
    torch.manual_seed(0)
    images, labels = torch.rand(96, 3, 8, 8).double(), torch.randint(0, 2, (96,))
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
    net = nn.Sequential(
        first, nn.Identity(), make_layer(), second, nn.Flatten(), nn.Linear(64, 2)
    ).double()  # fmt: skip
    watch = Watch()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), 0.1))
    loader = DataLoader(TensorDataset(images, labels), 16, shuffle=True)
    history = model.fit(
        loader, epochs=3, cpu=True, plot=False, quiet=True, callbacks=[watch], **options
    )
    assert type(net[2]) is not DropoutInOrder
    return torch.tensor(history["train_loss"].to_numpy()), watch


@pytest.mark.parametrize(
    ("make_layer", "channels_last"),
    [
        (nn.Dropout, True),
        (nn.Dropout2d, True),
        (PlainNoise, True),
        (lambda: nn.Dropout(inplace=True), False),
        (nn.AlphaDropout, False),
        (Functional, False),
        (Noise, False),
    ],
    ids=["dropout", "2d", "plain noise", "in place", "alpha", "functional", "noise"],
)
def test_images_in_another_layout_draw_the_same_numbers(make_layer, channels_last):
    expected, _ = train(make_layer, exact=True)
    found, watch = train(make_layer)
    assert watch.channels_last == channels_last
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_dropout_is_a_plain_layer_again_after_fit():
    _, watch = train(nn.Dropout)
    assert watch.kind is DropoutInOrder


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_dropout_in_order_draws_what_plain_images_get(p):
    net = nn.Sequential(nn.Dropout(p))
    draw_in_order(net)
    images = torch.rand(4, 6, 5, 3) + 1
    torch.manual_seed(0)
    expected = functional.dropout(images, p)
    for twin in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.manual_seed(0)
        found = twin(images.contiguous(memory_format=torch.channels_last))
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    assert net.eval()(images) is images
    draw_as_before(net)
    assert type(net[0]) is nn.Dropout


def test_columns_in_another_layout_draw_the_same_numbers():
    torch.manual_seed(0)
    rows, labels = torch.rand(30_000, 2), torch.rand(30_000, 1)
    losses = []
    for exact in (True, False):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 1))
        model = KerasModel(net, nn.MSELoss(), None, torch.optim.SGD(net.parameters(), 0.01))
        history = model.fit([(rows, labels)] * 6, epochs=1, cpu=True, plot=False, quiet=True,
                            exact=exact)  # fmt: skip
        losses.append(history["train_loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_compiled_functions_stay_compiled_after_a_look():
    traces = []

    def backend(graph, inputs):
        del inputs
        traces.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with DrawsOutOfOrder(dim=4) as draws:
        double(torch.rand(2))
    assert not draws.found
    assert not traces
    double(torch.rand(2))
    assert len(traces) == 1


@pytest.mark.parametrize("draw", [torch.rand_like, functional.dropout, torch.bernoulli])
def test_draws_for_other_layouts_are_found(draw):
    plain = torch.rand(2, 3, 4, 5)
    for images, found in ((plain, False), (plain.to(memory_format=torch.channels_last), True)):
        with DrawsOutOfOrder(dim=4) as draws:
            draw(images)
        assert draws.found == found
