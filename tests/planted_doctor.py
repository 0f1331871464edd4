"""Trainings with a planted bottleneck, small, and far enough from balance for a busy machine."""

from __future__ import annotations

import random
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hotloop import KerasModel

IN = 20


class Plain(Dataset):
    """Samples that take no time."""

    def __init__(self, length=240):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.full((IN,), index / len(self)), index % 2


class Waiting(Plain):
    """Each sample waits 5 ms, as for a disk."""

    def __getitem__(self, index):
        time.sleep(0.005)
        return super().__getitem__(index)


class Decoding(Plain):
    """Each sample computes 5 ms, as a decoder does."""

    def __getitem__(self, index):
        until = time.thread_time() + 0.005
        while time.thread_time() < until:
            pass
        return super().__getitem__(index)


class Drawing(Waiting):
    """Each sample draws random numbers."""

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return inputs + random.random(), label


def slow_collate(samples):
    time.sleep(0.1)
    return torch.utils.data.default_collate(samples)


def quick_collate(samples):
    """As torch's, but a function of the user's own: such data is not served from memory."""
    return torch.utils.data.default_collate(samples)


def make_net(width=64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 2))


def make_model(net=None, metrics=None, kind=KerasModel):
    net = net or make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000)
    return kind(net, nn.CrossEntropyLoss(), metrics, optimizer, scheduler)


def make_loader(dataset=None, batch_size=16, **options):
    return DataLoader(dataset or Plain(), batch_size=batch_size, shuffle=True, **options)


class ReadsBack(KerasModel):
    def step(self, batch):
        inputs, labels = batch
        preds = self.net(inputs)
        loss = self.loss_fn(preds, labels)
        if loss.item() > 1e9:
            print("so large")
        return loss, preds, labels


class SlowMetric(nn.Module):
    """A metric that waits 50 ms for each batch."""

    def forward(self, preds, labels):
        time.sleep(0.05)

    def compute(self):
        return 0.0

    def reset(self):
        pass


class OnHost(SlowMetric):
    def forward(self, preds, labels):
        self.seen = preds.numpy().sum() + float(labels.sum())


class SlowCallback:
    def on_train_epoch_end(self, model):
        time.sleep(0.5)
