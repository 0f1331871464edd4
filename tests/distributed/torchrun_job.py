"""Many fits in two processes that torchrun started; the main one writes what it found."""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from torchmetrics.classification import BinaryAccuracy

from hotloop import EpochRunner, KerasModel, StepRunner
from hotloop.callbacks.progress import Progress
from hotloop.distributed import is_main_process, rank, sum_across, wait_for_all, world_size
from hotloop.distributed.reducing import SharedMetrics, differing
from hotloop.errors import CheckpointError, ProcessError, SettingsError
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.loop import EpochOptions
from hotloop.metrics import AUC, Accuracy

FOUND: dict[str, object] = {}
generator = torch.Generator().manual_seed(0)
INPUTS = torch.randn(203, 4, generator=generator)
LABELS = (INPUTS[:, :1] > 0).float()
DATA = TensorDataset(INPUTS, LABELS)


def make_model(net=None, seed=0, kind=KerasModel, loss=nn.BCEWithLogitsLoss, **options):
    torch.manual_seed(seed)
    net, loss_fn = net or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), loss()
    trained = [*net.parameters(), *loss_fn.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.2, momentum=0.9)
    metrics = {"acc": Accuracy(), "auc": AUC()}
    return kind(net, loss_fn, metrics, optimizer, **options)


def fit(model, batch_size, **options):
    torch.manual_seed(1)
    data = [DataLoader(DATA, batch_size, shuffle=True), DataLoader(DATA, batch_size)]
    history = model.fit(
        *data, **{"epochs": 2, "cpu": True, "plot": False, "quiet": True, **options}
    )
    return history.to_dict("list")


def weights(model):
    trained = [*model.net.parameters(), *model.loss_fn.parameters()]
    return torch.cat([p.detach().flatten() for p in trained])


def differs_between_processes(values):
    mean = sum_across(values) / 2
    return bool((sum_across((values - mean).abs()) > 0).any())


def compare(name, **options):
    made = options.pop("model", {})
    several = make_model(seed=rank(), **made)  # the main process' weights win
    history = fit(several, 16, devices="all", **options)
    alone = make_model(**made)
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


class WarmLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.warmth = nn.Parameter(torch.tensor(1.0))

    def forward(self, preds, labels):
        return nn.functional.binary_cross_entropy_with_logits(preds * self.warmth, labels)


class ByMethod(KerasModel):
    def step(self, batch):
        preds = self.net[2](self.net[1](self.net[0](batch[0])))  # never the net itself
        return self.loss_fn(preds, batch[1]), preds, batch[1]


class AddsNow(KerasModel):
    def step(self, batch):
        preds = self.net(batch[0])
        found = {"loss": self.loss_fn(preds, batch[1]), "preds": preds, "labels": batch[1]}
        return found | ({"seen": torch.tensor(3.0)} if rank() == 1 else {})


class Changes:
    """Freezes and unfreezes the first layer, and asks of the main process alone what it likes."""

    def on_train_epoch_end(self, model):
        assert type(model.net) is nn.Sequential
        layer = model.net[0]
        layer.requires_grad_(not layer.weight.requires_grad)
        if rank() == 0:
            with torch.random.fork_rng():  # whose draws would be those of the order in one process
                model.evaluate(DATA, quiet=True, batch_size=64)


class Spoils:
    def on_train_epoch_end(self, model):
        if rank() == 1:
            with torch.no_grad():
                model.net[0].weight.add_(0.01)


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


class Hits(nn.Module):
    """The state of a metric that keeps what it finds."""

    sums_across_processes = True

    def __init__(self):
        super().__init__()
        self.found = []


class Eager(Progress):
    """A display of the main process that asks for values after each step."""

    interval_seconds = 0.0

    def wants_values(self):
        return rank() == 0


def bar():
    """Return a torchmetrics value of an epoch whose bar only the main process draws."""
    metrics = nn.ModuleDict({"acc": BinaryAccuracy()})
    model = make_model()
    runner = StepRunner(
        model.net,
        model.loss_fn,
        Accelerator(torch.device("cpu")),
        stage="val",
        metrics_dict=metrics,
    )
    epoch = EpochRunner(runner)
    epoch.options = EpochOptions(progress=Eager())
    own = TensorDataset(INPUTS[rank() :: 2], LABELS[rank() :: 2])
    value = epoch(DataLoader(own, 16))["val_acc"]
    with torch.no_grad():
        right = (model.net(own.tensors[0]) > 0) == own.tensors[1].bool()
    assert value == right.float().mean().item(), "the other process' samples are in it"
    assert metrics["acc"].sync_on_compute, "the user's metric is left as it was"
    return "its own"


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
    turned = torch.tensor([1.0 + rank() * 1j])
    assert differing([("same", own[1:]), ("turned", turned)], accelerator.device) == ["turned"]
    hits = Hits()
    if rank() == 1:  # the other one has met none
        hits.found.append(own)
    with SharedMetrics(hits).merged():
        assert torch.cat(hits.found).tolist() == [2.0, 10.0]
    return "both agree"


def resume():
    """Go on after the first of two epochs; then with checkpoints that one process cannot see."""
    whole, stopped, going_on = make_model(), make_model(), make_model()
    options = {"devices": "all", "resume": True, "gradient_accumulation_steps": 2}
    expected = fit(whole, 16, ckpt_path="whole.pt", **options)
    fit(stopped, 16, ckpt_path="stopped.pt", epochs=1, **options)
    found = fit(going_on, 16, ckpt_path="stopped.pt", **options)
    FOUND["resumed"] = found == expected and torch.equal(weights(whole), weights(going_on))
    folder = "elsewhere" if rank() == 1 else "."
    try:
        fit(make_model(), 16, ckpt_path=f"{folder}/stopped.pt", **options)
    except CheckpointError as error:
        FOUND["unseen"] = str(error)
    try:
        fit(make_model(), 16, ckpt_path="alone.pt", resume=True)
    except SettingsError as error:
        FOUND["separate"] = str(error)


def main():
    FOUND["meeting"] = meet()
    # metrics of one process must not meet those of the other: sums of both are the same values
    compare("plain")
    compare("accumulated", gradient_accumulation_steps=3, clip_grad_norm=0.5)
    compare("own_runner", model={"StepRunner": OwnRunner})

    compare("loss_with_weights", model={"loss": WarmLoss}, clip_grad_norm=0.5)
    compare("own_runner_and_loss", model={"StepRunner": OwnRunner, "loss": WarmLoss})
    compare("by_method", model={"kind": ByMethod}, gradient_accumulation_steps=2)
    compare("unfrozen", callbacks=[Changes()], epochs=4)
    FOUND["bar"] = bar()
    resume()
    model = make_model(kind=AddsNow)
    FOUND["adds"] = fit(model, 16, devices="all")["val_seen"]
    try:
        fit(make_model(), 16, devices="all", callbacks=[Spoils()])
    except ProcessError as error:
        FOUND["spoiled"] = str(error)

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
