"""What no result depends on is left out, exactly that, and unseen by whoever looks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.experiments.image_classifier import make_net
from hotloop.fitting.unread_edges import UnreadEdges

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
    edges = UnreadEdges(net)
    edges.apply()
    cropped = passes(net, images)
    edges.undo()
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
    [(_, crop)] = UnreadEdges(net)._crops
    read = crop._read(size[0], 0), crop._read(size[1], 1)
    assert read == (rows, columns)
    kept = crop.sizes_read(*size)
    assert kept in (read, size)


def test_the_main_jobs_images_lose_two_rows_and_columns():
    [(module, crop)] = UnreadEdges(make_net())._crops
    assert crop.sizes_read(28, 28) == (26, 26)
    assert crop(module, (torch.zeros(5, 1, 28, 28),))[0].shape == (5, 1, 26, 26)
    assert crop(module, (torch.zeros(5, 1, 26, 26),)) is None
    assert crop(module, (torch.zeros(1, 28, 28),)) is None  # one image alone
    assert crop(module, (torch.zeros(5, 1, 4, 4),)) is None  # too small: the layers say so


def test_a_small_share_is_not_worth_a_copy():
    [(_, crop)] = UnreadEdges(nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)))._crops
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
    assert not UnreadEdges(nn.Sequential(*REFUSED[name])).applies


def test_a_replaced_forward_ends_a_chain():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))
    net[1].forward = lambda images: images.sum()
    assert not UnreadEdges(net).applies


def test_parametrized_layers_are_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))
    nn.utils.parametrizations.weight_norm(net[0])
    assert not UnreadEdges(net).applies


def seen_by_hook(register):
    """Return the sizes that a hook of the user's on the first convolution sees."""
    net = make_net()
    edges = UnreadEdges(net)
    edges.apply()
    sizes = []
    handle = register(net, sizes)
    try:
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


def test_copies_work_alike():
    net = make_net().eval()
    edges = UnreadEdges(net)
    edges.apply()
    images = torch.rand(4, 1, 28, 28)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        [hook] = twin._forward_pre_hooks.values()
        assert hook.layers[0] is twin  # its own, not the first net's
        torch.testing.assert_close(twin(images), net(images))


class CountHooks:
    """Notes how many hooks of ours the net has while it is trained."""

    def on_train_epoch_end(self, model):
        self.num_hooks = len(model.net._forward_pre_hooks)


@pytest.mark.parametrize("options", [{}, {"compile": True}])
def test_fit_leaves_edges_out_unless_exact(options, images):
    data = TensorDataset(images[0][:200].double(), images[1][:200])
    nets, rows = [], []
    for exact in (True, False):
        torch.manual_seed(3)
        net, counter = make_net().double(), CountHooks()
        loader = DataLoader(data, batch_size=50, shuffle=True)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
        how = {"exact": True} if exact else options
        history = model.fit(
            loader, loader, epochs=2, plot=False, quiet=True, cpu=True, callbacks=[counter], **how
        )
        assert counter.num_hooks == (0 if exact else 1)
        assert not net._forward_pre_hooks
        rows.append(torch.tensor(history.to_numpy()))
        nets.append(net)
    torch.testing.assert_close(*rows, rtol=1e-7, atol=1e-9)
    for first, second in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)
