"""``fit(devices=2)``: the numbers of one process with batches twice as large."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel, load_weights
from hotloop.errors import LabelError, SettingsError


def train(small, batch_size, **options):
    torch.manual_seed(0)
    net = make_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, scheduler)
    # 197 samples: a last step of 5, that is 3 and 2
    data = TensorDataset(small[0][:197], small[1][:197])
    history = model.fit(
        DataLoader(data, batch_size, shuffle=True),
        DataLoader(data, batch_size),
        **{"epochs": 3, "cpu": True, "plot": False, "quiet": True, **options},
    )
    return model, history, torch.rand(3)


def test_the_times_of_the_main_process_come_back_and_tune_says_why_it_does_nothing(small, capfd):
    options = {"epochs": 1, "resident_budget": 0}
    model, _, _ = train(small, 10, **options)
    assert model.time_report().num_steps == 20 + 20

    data = TensorDataset(*small)
    model.fit(DataLoader(data, 10), cpu=True, plot=False, devices=2, tune="auto", **options)
    report = model.time_report()
    assert [(stage.stage, stage.num_steps) for stage in report.stages if stage.num_steps] == [
        ("train", 10)
    ]
    assert report.seconds["backward"] > 0
    reason = "train_data keeps its loader as it is: several processes train together"
    assert capfd.readouterr().out.count(reason) == 1


def test_a_fit_that_failed_in_its_processes_shows_no_earlier_times(small):
    model, _, _ = train(small, 10, epochs=1)
    labels = torch.full_like(small[1], 7)  # there are two classes
    with pytest.raises(LabelError):
        model.fit((small[0], labels), epochs=1, cpu=True, plot=False, quiet=True, devices=2)
    with pytest.raises(SettingsError, match="failed in processes that it had started"):
        model.time_report()


def test_the_numbers_of_one_process(small, capfd):
    alone, expected, random_after = train(small, 64, ckpt_path="alone.pt")
    several, history, random = train(
        small, 32, devices=2, ckpt_path="several.pt", quiet=False, compile=True
    )
    assert list(history.columns) == list(expected.columns)
    for column in history:
        assert history[column].tolist() == pytest.approx(expected[column].tolist(), abs=1e-6)
    for name, weight in alone.net.state_dict().items():
        assert torch.allclose(weight, several.net.state_dict()[name], atol=1e-6), name
    for index, state in alone.optimizer.state_dict()["state"].items():
        momentum = several.optimizer.state_dict()["state"][index]["momentum_buffer"]
        assert torch.allclose(state["momentum_buffer"], momentum, atol=1e-6)
    assert alone.lr_scheduler.last_epoch == several.lr_scheduler.last_epoch == 12
    assert (several.best_epoch, several.history) == (3, history.to_dict("list"))
    assert several.best_score == history["val_loss"].min()
    assert torch.equal(random, random_after)  # the next fit draws what it would have drawn

    # the file holds the bare net's names
    saved = torch.load("several.pt", weights_only=True)
    assert saved.keys() == several.net.state_dict().keys()
    load_weights(make_mlp(), "several.pt")
    # the parent shows what the main process tells, once
    out = capfd.readouterr().out
    assert "2 processes on cpu" in out
    assert out.count("epoch 3/3") == 1
    assert out.count("several processes train together") == 1  # why compile= fell back
    assert several.evaluate(small, quiet=True)["val_acc"] > 0.5
