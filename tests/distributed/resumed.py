"""A script that trains in two processes, and goes on where it was stopped; for test_resume.py."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel

generator = torch.Generator().manual_seed(3)
INPUTS = torch.randn(203, 4, generator=generator)
LABELS = (INPUTS[:, 0] > 0).long()
OPTIONS = {
    "accumulated": {"gradient_accumulation_steps": 3},
    "drawn": {"resident_budget": 0},
    "killed": {"save_every_steps": 4},
}


class Drawn(Dataset):
    """Draws noise while it is read."""

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return INPUTS[index] + 0.1 * torch.randn(4), LABELS[index]


class Loss(nn.Module):
    """In one of its calls in the second process, sends a signal to who started that.

    It weighs by what it saw before, which differs between the processes.
    """

    def __init__(self, stop_at, number):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.stop_at, self.number = stop_at, number
        self.count = 0

    def forward(self, preds, labels):
        self.count += 1
        if self.stop_at:
            time.sleep(0.03)  # so that the processes agree to stop several times an epoch
            if self.count == self.stop_at and os.environ["RANK"] == "1":
                os.kill(os.getppid(), self.number)
        loss = nn.functional.cross_entropy(preds, labels)
        self.seen.mul_(0.9).add_(loss.detach(), alpha=0.1)
        return loss * (1 + self.seen)


def fit(case, path, epochs=4, stop_at=0, number=signal.SIGTERM, **options):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    accuracy = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, Loss(stop_at, number), accuracy, optimizer)
    data = Drawn() if case == "drawn" else TensorDataset(INPUTS, LABELS)
    loaders = [
        DataLoader(data, 15, shuffle=True, num_workers=int(case == "drawn")),
        DataLoader(TensorDataset(INPUTS, LABELS), 50),
    ]
    history = model.fit(
        *loaders,
        **{
            "epochs": epochs, "ckpt_path": path, "cpu": True, "plot": False, "devices": 2,
            "resume": True, **OPTIONS.get(case, {}), **options,
        },
    )  # fmt: skip
    return {
        "history": history.to_dict("list"),
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "best": (model.best_epoch, model.best_score),
    }


if __name__ == "__main__":
    case, path, stop_at, number = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    torch.save(fit(case, path, stop_at=stop_at, number=number), f"{path}.found")
