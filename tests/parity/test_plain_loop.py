"""The first promise: ``fit(exact=True)`` computes what a loop written by hand computes, bitwise."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import make_conv_net, make_loaders
from torch import nn
from torchmetrics import Accuracy

from hotloop import KerasModel


def plain_loop(net, loaders, epochs, make_optimizer, *, scheduler=None, clip=None):
    """Train as a textbook shows it; return each epoch's values, and the best epoch's weights."""
    train_loader, val_loader = loaders
    loss_fn = nn.CrossEntropyLoss()
    optimizer = make_optimizer(net.parameters())
    lr_scheduler = scheduler(optimizer) if scheduler else None
    accuracy = Accuracy(task="multiclass", num_classes=10)
    rows, best_acc, best_weights = [], -1.0, None
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch}
        net.train()
        total = count = 0
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            preds = net(inputs)
            loss = loss_fn(preds, labels)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            if lr_scheduler:
                lr_scheduler.step()
            accuracy.update(preds, labels)
            total += loss.item() * len(labels)
            count += len(labels)
        row["train_loss"], row["train_acc"] = total / count, accuracy.compute().item()
        row["lr"] = optimizer.param_groups[0]["lr"]
        accuracy.reset()
        net.eval()
        total = count = 0
        with torch.no_grad():
            for inputs, labels in val_loader:
                preds = net(inputs)
                total += loss_fn(preds, labels).item() * len(labels)
                count += len(labels)
                accuracy.update(preds, labels)
        row["val_loss"], row["val_acc"] = total / count, accuracy.compute().item()
        accuracy.reset()
        rows.append(row)
        if row["val_acc"] > best_acc:
            best_acc, best_weights = row["val_acc"], copy.deepcopy(net.state_dict())
    return rows, best_weights


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4)


def decay(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.99)


CASES = {
    "adam, shuffled, dropout": dict(make_optimizer=adam),
    "sgd, scheduler, clipping": dict(make_optimizer=sgd, scheduler=decay, clip=0.5),
    "two workers": dict(make_optimizer=adam, loader={"num_workers": 2}),
    "drop_last, batch of 100": dict(make_optimizer=adam, loader={"drop_last": True}, batch=100),
}


@pytest.mark.parametrize("name", CASES)
def test_fit_is_bitwise_the_plain_loop(name, images):
    case = CASES[name]
    make_optimizer = case["make_optimizer"]
    scheduler, clip = case.get("scheduler"), case.get("clip")
    loader_options = {"batch_size": case.get("batch", 128), **case.get("loader", {})}

    torch.manual_seed(7)
    net = make_conv_net()
    loaders = make_loaders(images, **loader_options)
    rows, best_weights = plain_loop(net, loaders, 2, make_optimizer, scheduler=scheduler, clip=clip)

    torch.manual_seed(7)
    net = make_conv_net()
    loaders = make_loaders(images, **loader_options)
    optimizer = make_optimizer(net.parameters())
    model = KerasModel(
        net,
        nn.CrossEntropyLoss(),
        {"acc": Accuracy(task="multiclass", num_classes=10)},
        optimizer,
        scheduler(optimizer) if scheduler else None,
    )
    history = model.fit(
        *loaders,
        epochs=2,
        monitor="val_acc",
        mode="max",
        exact=True,
        plot=False,
        quiet=True,
        cpu=True,
        clip_grad_norm=clip,
    )

    assert history.to_dict("records") == rows
    assert all(torch.equal(value, best_weights[key]) for key, value in net.state_dict().items())


def test_dropout_and_order_do_matter(images):
    """The comparison can fail: another seed gives other weights."""
    weights = []
    for seed in (1, 2):
        torch.manual_seed(0)
        net = make_conv_net()
        torch.manual_seed(seed)
        KerasModel(net, nn.CrossEntropyLoss()).fit(
            *make_loaders(images), epochs=1, exact=True, plot=False, quiet=True, cpu=True
        )
        weights.append(net[0].weight.detach().clone())
    assert not torch.equal(*weights)
