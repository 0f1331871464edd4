"""What no result depends on is left out, exactly that, and unseen by whoever looks."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from builders import needs_graphs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import Callback, KerasModel
from hotloop.experiments.image_classifier import make_net
from hotloop.fitting.unread_edges import CropUnread, UnreadEdges, _find_chains

CHAINS = {
    "pools leave a row": lambda: [
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 5), nn.MaxPool2d(2)
    ],
    "steps": lambda: [nn.Conv2d(2, 4, 3, stride=3), nn.Tanh(), nn.AvgPool2d(3, stride=2)],
    "apart": lambda: [nn.Conv2d(2, 4, 3, dilation=2), nn.Dropout2d(0.5), nn.MaxPool2d(3)],
    "groups": lambda: [nn.Conv2d(2, 4, (3, 2), groups=2, padding="valid"), nn.MaxPool2d((3, 4))],
    "nested": lambda: [
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU(), nn.MaxPool2d(3, stride=2)),
    ],
    "spread pool": lambda: [nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, stride=3, dilation=2)],
}  # fmt: skip


def make_chain(name):
    torch.manual_seed(0)
    return nn.Sequential(*CHAINS[name](), nn.Flatten()).double()


def crop_of(net):
    """Return the hook of a net's one chain."""
    [(windows, layers)] = _find_chains(net).values()
    return CropUnread(windows, layers)


def passes(net, images):
    """Return the output, the gradients, and the next random number."""
    torch.manual_seed(1)
    net.zero_grad()
    output = net(images)
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in net.parameters()), torch.rand(1)]


@pytest.mark.parametrize("size", [(17, 17), (28, 28), (29, 20), (31, 32), (23, 27)])
@pytest.mark.parametrize("name", CHAINS)
def test_results_gradients_and_random_numbers_are_the_same(name, size):
    net = make_chain(name)
    images = torch.randn(3, 2, *size, dtype=torch.float64)
    plain = passes(net, images)
    with UnreadEdges().left_out(net):
        cropped = passes(net, images)
    for first, second in zip(plain, cropped, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("size", [(17, 17), (28, 28), (29, 20), (31, 32)])
@pytest.mark.parametrize("name", CHAINS)
def test_what_is_read_is_what_has_a_gradient(name, size):
    net = make_chain(name)
    images = torch.randn(64, 2, *size, dtype=torch.float64, requires_grad=True)
    net.eval()(images).square().sum().backward()
    touched = (images.grad != 0).any(0).any(0)
    rows, columns = touched.any(1).nonzero().max() + 1, touched.any(0).nonzero().max() + 1
    crop = crop_of(net)
    read = crop._read(size[0], 0), crop._read(size[1], 1)
    assert read == (rows, columns)
    kept = crop.sizes_read(*size)
    assert kept in (read, size)


def test_the_main_jobs_images_lose_two_rows_and_columns():
    module = make_net()
    crop = crop_of(module)
    assert crop.sizes_read(28, 28) == (26, 26)
    assert crop(module, (torch.zeros(5, 1, 28, 28),))[0].shape == (5, 1, 26, 26)
    assert crop(module, (torch.zeros(5, 1, 26, 26),)) is None
    assert crop(module, (torch.zeros(1, 28, 28),)) is None  # one image alone
    assert crop(module, (torch.zeros(5, 1, 4, 4),)) is None  # too small: the layers say so


def test_a_small_share_is_not_worth_a_copy():
    crop = crop_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)))
    assert crop.sizes_read(227, 227) == (227, 227)
    assert crop.sizes_read(29, 29) == (28, 28)


class MyConv(nn.Conv2d):
    pass


REFUSED = {
    "padding": [nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2)],
    "same padding": [nn.Conv2d(1, 2, 3, padding="same"), nn.MaxPool2d(2)],
    "padded pool": [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, padding=1)],
    "ceil": [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True)],
    "indices": [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, return_indices=True)],
    "statistics of all values": [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2)],
    "numbers for each value": [nn.Conv2d(1, 2, 3), nn.Dropout(), nn.MaxPool2d(2)],
    "a subclass": [MyConv(1, 2, 3), nn.MaxPool2d(2)],
    "changes its input": [nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)],
    "no convolution": [nn.MaxPool2d(2), nn.MaxPool2d(2)],
    "nothing after": [nn.Conv2d(1, 2, 3), nn.Flatten()],
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layers_end_a_chain(name):
    assert not _find_chains(nn.Sequential(*REFUSED[name]))


@pytest.mark.parametrize(("place", "name"), [(1, "forward"), (0, "forward"), (0, "_conv_forward")])
def test_a_replaced_forward_ends_a_chain(place, name):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))
    setattr(net[place], name, lambda images, *_: images.sum())
    assert not _find_chains(net)


def test_parametrized_layers_are_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))
    nn.utils.parametrizations.weight_norm(net[0])
    assert not _find_chains(net)


def seen_by_hook(register):
    """Return the sizes that a hook of the user's sees."""
    net = make_net()
    sizes = []
    handle = register(net, sizes)
    try:
        with UnreadEdges().left_out(net):
            net(torch.rand(2, 1, 28, 28)).sum().backward()
    finally:
        handle.remove()
    return sizes


def test_whoever_hooks_in_sees_everything():
    assert seen_by_hook(
        lambda net, sizes: net[0].register_forward_hook(
            lambda _, args, output: sizes.extend([args[0].shape[2], output.shape[2]])
        )
    ) == [28, 26]
    assert seen_by_hook(
        lambda net, sizes: net.register_forward_pre_hook(
            lambda _, args: sizes.append(args[0].shape[2])
        )
    ) == [28]
    assert seen_by_hook(
        lambda net, sizes: net[2].register_full_backward_hook(
            lambda _, grads, __: sizes.append(grads[0].shape[2])
        )
    ) == [13]
    assert seen_by_hook(
        lambda net, sizes: nn.modules.module.register_module_forward_hook(
            lambda _, args, __: sizes.append(args[0].shape[-1])
        )
    )[:1] == [28]


def test_odd_but_valid_settings_are_left_alone_or_understood():
    for size in ((2,), [2], np.int64(2)):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(size))
        images = torch.rand(2, 1, 13, 13)
        expected = net(images)
        with UnreadEdges().left_out(net):
            torch.testing.assert_close(net(images), expected)


def test_the_hook_stays_the_same_one_while_the_layers_do():
    net, edges, seen = make_net(), UnreadEdges(), []
    for _ in range(2):
        with edges.left_out(net):
            seen.append(dict(net._forward_pre_hooks))
    assert seen[0] == seen[1]
    net[3] = nn.AvgPool2d(2)
    with edges.left_out(net):
        assert dict(net._forward_pre_hooks) != seen[0]
    with pytest.raises(ZeroDivisionError), edges.left_out(net):
        raise ZeroDivisionError
    assert not net._forward_pre_hooks


class CountHooks:
    """Notes how many hooks the net has between the stages, and copies and exports it there."""

    def __init__(self):
        self.num_hooks = []

    def on_train_epoch_end(self, model):
        self.num_hooks.append(sum(len(m._forward_pre_hooks) for m in model.net.modules()))
        copy.deepcopy(model.net)
        pickle.dumps(model.net)
        scripted = torch.jit.script(model.net)
        assert scripted(torch.zeros(1, 1, 28, 28).double()).shape == (1, 10)


class PadsInTheMiddle:
    def on_train_epoch_end(self, model):
        model.net[2].padding = (1, 1)


class AnotherPool:
    def on_train_epoch_end(self, model):
        model.net[3] = nn.AvgPool2d(3, 1)


class CeilMode:
    def on_train_epoch_end(self, model):
        model.net[3].ceil_mode = True


class Nothing(Callback):
    """Does nothing."""


def train(images, exact, callback, **options):
    torch.manual_seed(3)
    net = make_net().double()
    data = TensorDataset(images[0][:200].double(), images[1][:200])
    loader = DataLoader(data, batch_size=50, shuffle=True)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    how = {"exact": True} if exact else options
    history = model.fit(
        loader, loader, epochs=3, plot=False, cpu=True, callbacks=[callback], monitor="train_loss",
        **how,
    )  # fmt: skip
    assert not net._forward_pre_hooks
    return torch.tensor(history.to_numpy()), net


@pytest.mark.parametrize("callback", [Nothing, PadsInTheMiddle, AnotherPool, CeilMode])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="eager"),
        pytest.param({"compile": True}, id="compiled", marks=needs_graphs),
    ],
)
def test_fit_leaves_edges_out_and_sees_layers_change(options, callback, images, capsys):
    expected, _ = train(images, True, callback())
    capsys.readouterr()
    found, _ = train(images, False, callback(), **options)
    said = capsys.readouterr().out
    assert ("compile: the training step is one graph" in said) == bool(options)
    assert "runs eagerly" not in said
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # from torch 2.14
def test_callbacks_meet_the_net_as_it_is(images):
    callback = CountHooks()
    train(images, False, callback)
    assert callback.num_hooks == [0, 0, 0]


def test_fit_computes_less_unless_exact(images, monkeypatch):
    sizes = {}
    for exact in (True, False):
        seen = sizes[exact] = set()

        def conv(images, *args, seen=seen, conv=torch.nn.functional.conv2d, **options):
            seen.add(images.shape[-1])
            return conv(images, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "conv2d", conv)
            train(images, exact, Nothing())
    assert sizes == {True: {28, 13}, False: {26, 12}}
