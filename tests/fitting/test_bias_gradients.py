"""Gradients of biases summed apart: the same numbers, for those that torch would give them to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.fitting import bias_gradients
from hotloop.fitting.backward import run_backward
from hotloop.fitting.bias_gradients import BiasGradients, TakenBiases

LAST = torch.channels_last


@pytest.fixture
def taken(monkeypatch):
    """Let small results count; return the list that gets the number of biases of each pass."""
    counts = []

    class Noted(TakenBiases):
        def gradients(self):
            found = super().gradients()
            counts.append(len(found[0]))
            return found

    monkeypatch.setattr(bias_gradients, "_MIN_VALUES", 1)
    monkeypatch.setattr(bias_gradients, "TakenBiases", Noted)
    return counts


def make(num_out=16, **options):
    torch.manual_seed(0)
    return nn.Conv2d(3, num_out, 3, **options).to(memory_format=LAST)


def make_images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 12, 13, generator=generator).contiguous(memory_format=LAST)


def gradients_of(net, loss_of, way=None):
    """Return the gradients that a backward pass leaves in the net's parameters."""
    for parameter in net.parameters():
        parameter.grad = None
    run_backward(loss_of(net), way)
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def assert_the_same(net, loss_of, count, taken):
    """Both ways give the same gradients; apart those of ``count`` biases are summed."""
    expected = gradients_of(net, loss_of)
    found = gradients_of(net, loss_of, BiasGradients(net))
    torch.testing.assert_close(found, expected)
    strides = [[None if g is None else g.stride() for g in some] for some in (found, expected)]
    assert strides[0] == strides[1]
    assert taken == ([count] if count else [])


@pytest.mark.parametrize("options", [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"padding": 1, "padding_mode": "reflect"},
])  # fmt: skip
def test_the_same_numbers(options, taken):
    images = make_images()
    assert_the_same(make(**options), lambda net: net(images).sin().sum(), 1, taken)


def test_whole_nets(taken):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(inplace=True), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32),
        nn.Conv2d(32, 16, 3, bias=False), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(336, 3),
    ).to(memory_format=LAST)  # fmt: skip
    images = make_images()
    assert_the_same(net, lambda net: net(images).sin().sum(), 2, taken)


def test_many_pixels_are_summed_as_exactly_as_before(taken):
    """Sums of 300,000 numbers, against float64."""
    net = nn.Conv2d(1, 32, 3).to(memory_format=LAST)
    images = torch.rand(512, 1, 26, 26)
    images = images.as_strided(images.shape, (676, 1, 26, 1))
    exact = gradients_of(copy.deepcopy(net).double(), lambda net: net(images.double()).sin().sum())
    errors = [
        (gradients_of(net, lambda net: net(images).sin().sum(), way)[1] - exact[1]).abs().max()
        for way in (None, BiasGradients(net))
    ]
    assert taken == [1]
    assert errors[1] <= 2 * errors[0] + 1e-6 * exact[1].abs().max()


@pytest.mark.parametrize(("frozen", "count"), [("weight", 0), ("bias", 0)])
def test_frozen_parameters(frozen, count, taken):
    net, images = make(), make_images()
    getattr(net, frozen).requires_grad_(False)
    assert_the_same(net, lambda net: net(images).sin().sum(), count, taken)


def test_a_bias_alone(taken):
    """Without any other leaf the pass could not be asked for others."""
    net = nn.Sequential(make(), make_second())
    images = make_images()
    for parameter in (net[0].weight, *net[1].parameters()):
        parameter.requires_grad_(False)
    assert_the_same(net, lambda net: net(images).sin().sum(), 0, taken)


def make_second():
    return nn.Conv2d(16, 8, 3).to(memory_format=LAST)


def test_gradients_that_do_not_come_channels_last(taken):
    net, images = make(), make_images()

    def loss_of(net):
        result = net(images)
        weights = torch.arange(result.numel(), dtype=torch.float32).sin().view(result.shape)
        return (result * weights).sum()

    expected, way = gradients_of(net, loss_of), BiasGradients(net)
    for _ in range(2):
        torch.testing.assert_close(gradients_of(net, loss_of, way), expected)
    assert taken == [1]  # once: then it is known that it does not pay


def test_gradients_add_up(taken):
    net, images = make(), make_images()
    way = BiasGradients(net)
    once = gradients_of(net, lambda net: net(images).sin().sum(), way)
    for _ in range(2):
        run_backward(net(images).sin().sum(), way)
    torch.testing.assert_close([p.grad for p in net.parameters()], [3 * g for g in once])
    assert taken == [1] * 3


def test_a_layer_that_is_used_twice(taken):
    net, images = make(), make_images()
    assert_the_same(net, lambda net: (net(images) * net(images.neg())).sin().sum(), 0, taken)


def test_a_bias_that_the_loss_uses_too(taken):
    net, images = make(), make_images()

    def loss_of(net):
        return net(images).sin().sum() + net.bias.square().sum()

    assert_the_same(net, loss_of, 0, taken)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant, taken):
    net, images = nn.Sequential(make(), nn.Tanh()), make_images()
    images.requires_grad_()

    def loss_of(net):
        return checkpoint(net, images, use_reentrant=reentrant).sin().sum()

    assert_the_same(net, loss_of, 0 if reentrant else 1, taken)


def test_hooks_and_what_is_looked_at_on_the_way(taken):
    net, images = nn.Sequential(make(), nn.Tanh()), make_images()
    images.requires_grad_()
    seen = []
    net[0].bias.register_hook(lambda gradient: seen.append("bias") or 2 * gradient)
    net[0].bias.register_post_accumulate_grad_hook(lambda bias: seen.append("accumulated"))
    net[0].register_full_backward_hook(lambda *_: seen.append("module"))

    def loss_of(net):
        images.grad = None
        between = net[0](images)
        between.retain_grad()
        loss_of.between = between
        return net[1](between).sin().sum()

    outcomes = []
    for way in (None, BiasGradients(net)):
        seen.clear()
        gradients = gradients_of(net, loss_of, way)
        outcomes.append([*gradients, images.grad.clone(), loss_of.between.grad.clone()])
        assert sorted(seen) == ["accumulated", "bias", "module"]
    torch.testing.assert_close(*outcomes)
    assert taken == [1]


def test_a_loss_that_takes_gradients_itself(taken):
    net, images = make(), make_images()

    def loss_of(net):
        inputs = images.detach().requires_grad_()
        (found,) = torch.autograd.grad(net(inputs).sin().sum(), inputs, create_graph=True)
        return found.square().sum()

    expected = gradients_of(net, loss_of)
    torch.testing.assert_close(gradients_of(net, loss_of, BiasGradients(net)), expected)


def test_a_pass_that_fails_leaves_no_hooks(taken):
    net, images = make(), make_images()

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ZeroDivisionError

    between = net(images)
    with pytest.raises(ZeroDivisionError):
        run_backward(Fails.apply(between).sum(), BiasGradients(net))
    assert net.bias.grad is None
    run_backward(between.sum())
    assert net.bias.grad is not None


@pytest.mark.parametrize(("net", "images"), [
    pytest.param(make(8), make_images(), id="few channels"),
    pytest.param(make(bias=False), make_images(), id="no bias"),
    pytest.param(make().double(), make_images().double(), id="float64"),
    pytest.param(nn.Conv1d(12, 16, 3), make_images()[0], id="one dimension"),
    pytest.param(nn.ConvTranspose2d(3, 16, 3), make_images(), id="transposed"),
])  # fmt: skip
def test_others_are_torchs_own(net, images, taken):
    assert_the_same(net, lambda net: net(images).sin().sum(), 0, taken)


def test_small_results_are_torchs_own(taken, monkeypatch):
    monkeypatch.setattr(bias_gradients, "_MIN_VALUES", 4 * 16 * 10 * 11 + 1)
    images = make_images()
    assert_the_same(make(), lambda net: net(images).sin().sum(), 0, taken)


def test_large_graphs_are_not_looked_at(taken, monkeypatch):
    monkeypatch.setattr(bias_gradients, "_MAX_NODES", 4)
    images = make_images()
    assert_the_same(make(), lambda net: net(images).sin().sum(), 0, taken)


def test_where_there_are_none_they_are_not_looked_for_again(monkeypatch):
    walks = []
    real = bias_gradients._walk
    monkeypatch.setattr(bias_gradients, "_walk", lambda root: walks.append(root) or real(root))
    net, images = make(), make_images()
    way = BiasGradients(net)
    for _ in range(3):
        gradients_of(net, lambda net: net(images).sin().sum(), way)
    assert len(walks) == 1


def fit(images, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 169, 10))
    model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(net.parameters()))
    inputs, labels = images
    loader = DataLoader(TensorDataset(inputs[:200], labels[:200]), 50)
    history = model.fit(loader, epochs=2, plot=False, quiet=True, cpu=True, **options)
    assert model.accelerator.bias_gradients is None
    return history["train_loss"].tolist(), list(net.state_dict().values())


def test_a_fit(taken, images, monkeypatch):
    found = fit(images)
    assert taken == [1] * 8
    monkeypatch.setattr(BiasGradients, "serves", lambda device: False)
    torch.testing.assert_close(found, fit(images), rtol=1e-4, atol=1e-4)
    assert taken == [1] * 8


def test_an_exact_fit_does_without(taken, images):
    fit(images, exact=True)
    assert not taken


def test_devices_and_processors_that_it_serves(monkeypatch):
    assert not BiasGradients.serves(torch.device("cuda"))
    for machine, serves in (("x86_64", torch.backends.mkldnn.is_available()), ("arm64", False)):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert BiasGradients.serves(torch.device("cpu")) is serves


def test_beside_a_reentrant_checkpoint_all_is_torchs(taken):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.rest = make(), nn.Conv2d(16, 4, 3, stride=4)

        def forward(self, images):
            return checkpoint(self.rest, self.conv(images).relu(), use_reentrant=True).mean()

    net, images = Net(), make_images()
    twin = copy.deepcopy(net)
    run_backward(net(images), BiasGradients(net))
    twin(images).backward()
    assert taken == []
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
