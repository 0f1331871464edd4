"""A training loop as a textbook shows it, which fits are compared with."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torchmetrics import Accuracy


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
