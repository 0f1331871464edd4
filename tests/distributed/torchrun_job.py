"""Many fits in two processes that torchrun started; the main one writes what it found."""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from hotloop import KerasModel, StepRunner
from hotloop.distributed import is_main_process, rank, sum_across, wait_for_all, world_size
from hotloop.errors import ProcessError
from hotloop.fitting.accelerator import Accelerator
from hotloop.metrics import AUC, Accuracy

FOUND: dict[str, object] = {}
generator = torch.Generator().manual_seed(0)
INPUTS = torch.randn(203, 4, generator=generator)
LABELS = (INPUTS[:, :1] > 0).float()
DATA = TensorDataset(INPUTS, LABELS)


def make_model(net=None, seed=0, **options):
    torch.manual_seed(seed)
    net = net or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    metrics = {"acc": Accuracy(), "auc": AUC()}
    return KerasModel(net, nn.BCEWithLogitsLoss(), metrics, optimizer, **options)


def fit(model, batch_size, **options):
    torch.manual_seed(1)
    data = [DataLoader(DATA, batch_size, shuffle=True), DataLoader(DATA, batch_size)]
    history = model.fit(
        *data, **{"epochs": 2, "cpu": True, "plot": False, "quiet": True, **options}
    )
    return history.to_dict("list")


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def differs_between_processes(values):
    mean = sum_across(values) / 2
    return bool((sum_across((values - mean).abs()) > 0).any())


def compare(name, **options):
    several = make_model(seed=rank(), **options.pop("model", {}))  # the main process' weights win
    history = fit(several, 16, devices="all", **options)
    alone = make_model()
    # without devices= each process trains on its own, here on the same data
    expected = fit(alone, 32, ckpt_path="alone.pt", **options)
    FOUND[name] = {
        "weights": (weights(several) - weights(alone)).abs().max().item(),
        "history": max(
            abs(a - b) for key in expected for a, b in zip(history[key], expected[key], strict=True)
        ),
        "differs": differs_between_processes(weights(several)),
    }


class OwnRunner(StepRunner):
    def __call__(self, batch):
        inputs, labels = batch
        preds = self.net(inputs)
        loss = self.loss_fn(preds, labels)
        if self.stage == "train":
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        for metric in self.metrics_dict.values():
            metric.update(preds.detach(), labels)
        return {f"{self.stage}_loss": loss.detach()}, {}


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, inputs):
        return self.used(inputs)


class Watch:
    def __init__(self):
        self.masks = []
        self.buffers = []

    def on_validation_epoch_end(self, model):
        self.masks.append(torch.rand(4))
        self.buffers.append(model.net.state_dict()["1.running_mean"].clone())


def meet():
    """Add, gather and save over the processes; each checks what it got."""
    own = torch.tensor([1.0 + rank(), 10.0])
    assert (world_size(), is_main_process()) == (2, rank() == 0)
    assert sum_across(own).tolist() == [3.0, 20.0]
    assert own.tolist() == [1.0 + rank(), 10.0]
    accelerator = Accelerator(torch.device("cpu"))
    assert accelerator.gather(own).tolist() == [1.0, 10.0, 2.0, 10.0]
    assert accelerator.gather(own[0]).tolist() == [1.0, 2.0]
    assert accelerator.reduce(own, "mean").tolist() == [1.5, 10.0]
    accelerator.save({"from": rank()}, "saved")
    wait_for_all()
    assert torch.load("saved", weights_only=True) == {"from": 0}
    return "both agree"


def main():
    FOUND["meeting"] = meet()
    # metrics of one process must not meet those of the other: sums of both are the same values
    compare("plain")
    compare("accumulated", gradient_accumulation_steps=3, clip_grad_norm=0.5)
    compare("own_runner", model={"StepRunner": OwnRunner})

    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    watch = Watch()
    model = make_model(net)
    history = fit(model, 16, devices="all", callbacks=[watch], epochs=6, patience=2)
    FOUND["random"] = {
        "masks": differs_between_processes(watch.masks[0]),
        "buffers": differs_between_processes(torch.stack(watch.buffers)),
        "weights": differs_between_processes(weights(model)),
        "epochs": differs_between_processes(torch.tensor([float(len(history["epoch"]))])),
        "names": list(model.net.state_dict()) == list(torch.load("checkpoint", weights_only=True)),
    }

    data = DataLoader(DATA, 16, sampler=DistributedSampler(DATA, shuffle=True))
    model = make_model()
    model.fit(data, epochs=2, devices=2, cpu=True, plot=False, quiet=True)
    FOUND["own_sampler"] = [data.sampler.epoch, differs_between_processes(weights(model))]

    try:
        fit(make_model(Unused()), 16, devices="all")
    except ProcessError as error:
        FOUND["unused"] = str(error)
    if rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(FOUND, file)


if os.environ.get("WORLD_SIZE"):
    torch.distributed.init_process_group("gloo")  # fit joins the script's own group
    main()
    torch.distributed.destroy_process_group()
