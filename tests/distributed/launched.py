"""A script as users write one, without a guard: fits in two processes, as its arguments say."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch import nn

from hotloop import KerasModel

CASES = sys.argv[1:]


class Net(nn.Module):  # known to this script only
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(inputs)


class Loss(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case
        self.calls = 0

    def forward(self, preds, labels):
        self.calls += 1
        if self.case == "raise" and os.environ["RANK"] == "1" and self.calls == 8:
            raise LookupError("no such row")
        if self.case == "kill" and os.environ["RANK"] == "1" and self.calls == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.case in ("interrupt", "orphan"):
            time.sleep(0.01)
        return nn.functional.cross_entropy(preds, labels)


def fit(case):
    torch.manual_seed(0)
    inputs = torch.randn(90, 4)
    labels = (inputs[:, 0] > 0).long()
    net = Net()
    model = KerasModel(net, Loss(case))
    try:
        history = model.fit(
            (inputs, labels),
            (inputs, labels),
            epochs=1000 if case in ("interrupt", "orphan") else 3,
            patience=1000,
            batch_size=15,
            cpu=True,
            devices=2,
            plot=False,
        )
        print("rows", len(history), "best epoch", model.best_epoch, flush=True)
        print("finite", all(bool(p.isfinite().all()) for p in net.parameters()), flush=True)
    except Exception as error:  # noqa: BLE001 - shown, whatever it is
        print(type(error).__name__, str(error).replace("\n", " "), flush=True)
        print("epochs kept", len(model.history["epoch"]), "file", os.path.exists("checkpoint"))
        for note in getattr(error, "__notes__", []):
            print(note, flush=True)


for one in CASES:
    print("case", one, flush=True)
    fit(one)
