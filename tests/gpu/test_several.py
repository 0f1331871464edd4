"""Devices by hand and several accelerators, where the machine has them."""

from __future__ import annotations

import pytest
import torch
from builders import make_conv_net, make_loaders, make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import (
    KerasModel,
    choose_device,
    explain_devices,
    free_memory,
    load_weights,
    peak_memory,
    to_device,
)
from hotloop.errors import DeviceError

MIB = 2**20
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]
several = pytest.mark.skipif(
    not torch.accelerator.is_available() or torch.accelerator.device_count() < 2,
    reason="fewer than two accelerators",
)


def test_peak_and_freed_memory():
    device = choose_device().device
    free_memory()
    with peak_memory() as peak:
        block = torch.ones(64 * MIB // 4, device=device)
        del block
    assert 64 * MIB <= peak.added_bytes < 80 * MIB
    held = [torch.ones(64 * MIB // 4, device=device)]
    assert free_memory(held) >= 64 * MIB


def test_the_error_names_what_is_where():
    device = choose_device().device
    net = nn.Linear(4, 2).to(device)
    message = rf"weight, bias on {device}.*input on cpu"
    with pytest.raises(DeviceError, match=message), explain_devices(net=net):
        net(torch.ones(3, 4))


def test_a_data_set_on_the_device(small):
    device = choose_device().device
    loader = DataLoader(to_device(TensorDataset(*small), device), batch_size=50)
    assert all(tensor.device == device for batch in loader for tensor in batch)


@several
@pytest.mark.parametrize("devices", ["all", [1, 0]])
def test_learns_on_several(images, devices):
    torch.manual_seed(0)
    net = make_conv_net()
    accuracy = {"acc": Accuracy(task="multiclass", num_classes=10)}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    model = KerasModel(net, nn.CrossEntropyLoss(), accuracy, optimizer)
    history = model.fit(
        *make_loaders(images, batch_size=64),
        epochs=4,
        monitor="val_acc",
        mode="max",
        devices=devices,
        plot=False,
        quiet=True,
    )
    assert history["val_acc"].max() > 0.5
    load_weights(make_conv_net(), model.ckpt_path)


@several
def test_the_numbers_of_one_accelerator(small):
    weights = []
    for devices, batch_size in ((None, 64), (2, 32)):
        torch.manual_seed(0)
        net = make_mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=optimizer)
        loader = DataLoader(TensorDataset(*small), batch_size, shuffle=True)
        model.fit(loader, epochs=3, devices=devices, tf32=False, plot=False, quiet=True)
        weights.append(torch.cat([p.detach().flatten().cpu() for p in net.parameters()]))
    assert torch.allclose(*weights, atol=1e-5)


@several
def test_synchronised_batch_norm(small):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    model = KerasModel(net, nn.CrossEntropyLoss())
    history = model.fit(small, batch_size=20, epochs=2, devices=2, plot=False, quiet=True)
    assert history["train_loss"].notna().all()
