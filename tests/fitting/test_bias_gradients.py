"""Gradients of biases computed apart: the same numbers, where they are, and no trace afterwards."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.fitting import bias_gradients
from hotloop.fitting.bias_gradients import BiasGradients

LAST = torch.channels_last


@pytest.fixture
def applied(monkeypatch):
    """Let small results count; return the list that gets one entry for each convolution served."""
    calls = []
    real = bias_gradients._Convolution.apply

    class Noted:
        @staticmethod
        def apply(*args):
            calls.append(args[0].shape)
            return real(*args)

    monkeypatch.setattr(bias_gradients, "_MIN_VALUES", 1)
    monkeypatch.setattr(bias_gradients, "_Convolution", Noted)
    return calls


def make(**options):
    torch.manual_seed(0)
    return nn.Conv2d(3, 16, 3, **options).to(memory_format=LAST)


def make_images(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(*(shape or (4, 3, 12, 13)), generator=generator, dtype=dtype)
    return images.contiguous(memory_format=LAST)


def passes(layer, images):
    """Return the result and all gradients."""
    images = images.detach().requires_grad_()
    result = layer(images)
    wanted = [images, *(p for p in layer.parameters() if p.requires_grad)]
    return result.detach(), torch.autograd.grad(result.sin().sum(), wanted)


@pytest.mark.parametrize("options", [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (0, 2), "dilation": 2},
    {"stride": (1, 3)},
    {"groups": 1, "bias": True},
])  # fmt: skip
def test_the_same_numbers(options, applied):
    layer, images = make(**options), make_images()
    expected, gradients = passes(layer, images)
    with BiasGradients().apart(layer):
        found, found_gradients = passes(layer, images)
    assert len(applied) == 1
    assert torch.equal(found, expected)
    torch.testing.assert_close(found_gradients, gradients)
    assert [g.stride() for g in found_gradients] == [g.stride() for g in gradients]


def test_many_pixels_are_summed_as_exactly_as_before(applied):
    """A sum of 300,000 numbers, against float64."""
    layer = nn.Conv2d(1, 32, 3).to(memory_format=LAST)
    images = torch.rand(512, 1, 26, 26)
    images = images.as_strided(images.shape, (676, 1, 26, 1))
    exact = passes(copy.deepcopy(layer).double(), images.double())[1][2]
    before = (passes(layer, images)[1][2] - exact).abs().max()
    with BiasGradients().apart(layer):
        after = (passes(layer, images)[1][2] - exact).abs().max()
    assert len(applied) == 1
    assert after <= 2 * before + 1e-6 * exact.abs().max()


def test_images_that_are_cut(applied):
    layer, whole = make(), make_images(4, 3, 14, 14)
    images = whole[:, :, :12, :12]
    expected, gradients = passes(layer, images)
    with BiasGradients().apart(layer):
        found, found_gradients = passes(layer, images)
    assert len(applied) == 1
    assert torch.equal(found, expected)
    torch.testing.assert_close(found_gradients, gradients)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parameters(frozen, applied):
    layer, images = make(), make_images()
    for name in ("weight", "bias") if frozen == "both" else (frozen,):
        getattr(layer, name).requires_grad_(False)
    expected = passes(layer, images)
    with BiasGradients().apart(layer):
        torch.testing.assert_close(passes(layer, images), expected)
    assert len(applied) == (1 if frozen == "weight" else 0)


def test_gradients_that_do_not_come_channels_last(applied):
    layer, images = make(), make_images()

    def run():
        result = layer(images)
        weights = torch.arange(result.numel(), dtype=torch.float32).sin().view(result.shape)
        return torch.autograd.grad((result * weights).sum(), list(layer.parameters()))

    expected = run()
    with BiasGradients().apart(layer):
        torch.testing.assert_close(run(), expected)
    assert len(applied) == 1


def test_gradients_of_gradients(applied):
    layer, images = make(), make_images()

    def penalty():
        inputs = images.detach().requires_grad_()
        (of_images,) = torch.autograd.grad(layer(inputs).sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(of_images.square().sum(), list(layer.parameters()))

    expected = penalty()
    with BiasGradients().apart(layer):
        torch.testing.assert_close(penalty(), expected)
    assert len(applied) == 1


def other_cases():
    yield "few channels", nn.Conv2d(3, 8, 3).to(memory_format=LAST), make_images()
    yield "no bias", make(bias=False), make_images()
    yield "padded otherwise", make(padding=1, padding_mode="reflect"), make_images()
    yield "a named padding", make(padding="same"), make_images()
    yield "float64", make().double(), make_images(dtype=torch.float64)
    yield "channels first", make(), make_images().contiguous()
    yield "one image", make(), make_images()[0]
    replaced = make()
    replaced.forward = lambda images: nn.functional.conv2d(images, replaced.weight, replaced.bias)
    yield "replaced", replaced, make_images()

    class Own(nn.Conv2d):
        pass

    yield "a subclass", Own(3, 16, 3).to(memory_format=LAST), make_images()


@pytest.mark.parametrize(("layer", "images"), [
    pytest.param(layer, images, id=name) for name, layer, images in other_cases()
])  # fmt: skip
def test_others_are_torchs_own(layer, images, applied):
    with BiasGradients().apart(layer):
        passes(layer, images)
    assert not applied


def test_small_results_are_torchs_own(applied, monkeypatch):
    monkeypatch.setattr(bias_gradients, "_MIN_VALUES", 4 * 16 * 12 * 13 + 1)
    layer = make()
    with BiasGradients().apart(layer):
        passes(layer, make_images())
    assert not applied


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_contexts_of_torchs(applied):
    layer, images = make(), make_images()
    parameters = dict(layer.named_parameters())

    def loss(parameters, images):
        return torch.func.functional_call(layer, parameters, (images,)).sin().mean()

    expected = torch.func.grad(loss)(parameters, images)
    with BiasGradients().apart(layer):
        with torch.no_grad():
            layer(images)
        with torch.autocast("cpu", torch.bfloat16):
            layer(images)
        found = torch.func.grad(loss)(parameters, images)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(images, torch.ones_like(images))
            assert torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent is not None
        torch.func.vmap(layer)(images[None])
    assert not applied
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiled_nets_are_left_alone(applied):
    net = nn.Sequential(make())
    net.compile()
    with BiasGradients().apart(net):
        assert not any("_conv_forward" in vars(layer) for layer in net.modules())


def test_no_trace_is_left():
    net = nn.Sequential(make(), nn.ReLU())
    before = [dict(vars(layer)) for layer in net]
    with contextlib.suppress(ZeroDivisionError), BiasGradients().apart(net):
        assert "_conv_forward" in vars(net[0])
        copy.deepcopy(net)(make_images())
        raise ZeroDivisionError
    assert [dict(vars(layer)) for layer in net] == before
    pickle.dumps(net)


def fit(images, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 169, 10))
    model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(net.parameters()))
    inputs, labels = images
    loader = DataLoader(TensorDataset(inputs[:200], labels[:200]), 50)
    history = model.fit(loader, epochs=2, plot=False, quiet=True, cpu=True, **options)
    assert not any("_conv_forward" in vars(layer) for layer in net)
    return history["train_loss"].tolist(), list(net.state_dict().values())


def test_a_fit(applied, images, monkeypatch):
    found = fit(images)
    assert len(applied) == 8 + 1  # the trial of the layout
    monkeypatch.setattr(BiasGradients, "serves", lambda device: False)
    torch.testing.assert_close(found, fit(images), rtol=1e-4, atol=1e-4)
    assert len(applied) == 8 + 1


@pytest.mark.parametrize("options", [{"exact": True}, {"compile": True}])
def test_fits_that_do_without(options, applied, images):
    fit(images, **options)
    assert not applied


def test_devices_and_processors_that_it_serves(monkeypatch):
    assert not BiasGradients.serves(torch.device("cuda"))
    for machine, serves in (("x86_64", torch.backends.mkldnn.is_available()), ("arm64", False)):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert BiasGradients.serves(torch.device("cpu")) is serves
