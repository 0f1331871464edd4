"""A keyword argument that nothing reads is refused, and those that something reads are not."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.errors import SettingsError
from hotloop.fitting.loop import EpochRunner
from hotloop.fitting.step import StepRunner


def make_model(kind=KerasModel, **options):
    return kind(make_mlp(), nn.CrossEntropyLoss(), **options)


def fit(model, small, **options):
    options = {"epochs": 1, "plot": False, "quiet": True, "cpu": True, **options}
    return model.fit(small, **options)


def refused(model, small, **options):
    before = model.net[0].weight.detach().clone()
    with pytest.raises(SettingsError) as caught:
        fit(model, small, **options)
    assert torch.equal(before, model.net[0].weight)
    return str(caught.value)


def adam():
    return torch.optim.Adam([nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("metrics", {"acc": Accuracy(task="multiclass", num_classes=2)}, "metrics_dict"),
        ("metric_dict", {}, "metrics_dict"),
        ("optimiser", adam(), "optimizer"),
        ("optimzer", adam(), "optimizer"),
        ("scheduler", object(), "lr_scheduler"),
        ("lr_schedular", object(), "lr_scheduler"),
        ("Steprunner", StepRunner, "StepRunner"),
    ],
)
def test_another_name_of_an_argument(small, name, value, meant):
    model = make_model(**{name: value})
    assert refused(model, small) == (
        f"KerasModel takes no {name}=, which hotloop's own StepRunner does not read: did you mean "
        f"{meant}=?"
    )
    with pytest.raises(SettingsError, match=f"did you mean {meant}="):
        model.evaluate(small, quiet=True)


def test_a_loss_by_another_name(small):
    model = KerasModel(make_mlp(), None, criterion=nn.CrossEntropyLoss())
    assert refused(model, small).endswith("did you mean loss_fn=?")


def test_arguments_of_fit_a_learning_rate_and_others(small):
    assert refused(make_model(epochs=3), small).endswith("does not read: pass it to fit.")
    assert "optimizer=torch.optim.Adam(net.parameters(), lr=0.01)" in refused(
        make_model(lr=0.01), small
    )
    text = refused(make_model(temperature=2.0), small)
    assert text.endswith(
        "leave it out, or read self.kwargs['temperature'] in a StepRunner of your own."
    )


class Runner(StepRunner):
    def __call__(self, batch):
        losses, metrics = super().__call__(batch)
        return {**losses, f"{self.stage}_temperature": float(self.kwargs["temperature"])}, metrics


class Epochs(EpochRunner):
    def __call__(self, dataloader):
        values = super().__call__(dataloader)
        return {**values, f"{self.stage}_temperature": self.step_runner.kwargs["temperature"]}


class Model(KerasModel):
    def step(self, batch):
        return {"loss": self.loss_fn(self.net(batch[0]), batch[1]), **self.kwargs}


def on_the_class(monkeypatch):
    monkeypatch.setattr(KerasModel, "StepRunner", Runner)
    return make_model(temperature=2.0)


def on_the_class_later(monkeypatch):
    model = make_model(temperature=2.0)
    monkeypatch.setattr(KerasModel, "StepRunner", Runner)
    return model


def on_the_object(monkeypatch):
    model = make_model(temperature=2.0)
    model.StepRunner = Runner
    return model


@pytest.mark.parametrize(
    "make",
    [
        on_the_class,
        on_the_class_later,
        on_the_object,
        lambda _: make_model(temperature=2.0, StepRunner=Runner),
        lambda _: make_model(temperature=2.0, EpochRunner=Epochs),
        lambda _: make_model(Model, temperature=2.0),
    ],
)
def test_what_a_runner_or_step_of_the_users_own_reads(small, monkeypatch, make):
    model = make(monkeypatch)
    assert fit(model, small)["train_temperature"].tolist() == [2.0]
    assert model.evaluate(small, quiet=True)["val_temperature"] == 2.0


def test_what_a_callback_reads(small):
    class Reads:
        def on_fit_start(self, model):
            self.found = model.kwargs["temperature"]

    callback = Reads()
    model = make_model(temperature=2.0)
    fit(model, small, callbacks=[callback])
    assert callback.found == 2.0
    model.evaluate(small, quiet=True)


def test_a_module_of_the_loss_is_moved_and_trained(small):
    net, head = make_mlp(16), nn.Linear(16, 2)

    def loss_fn(preds, labels):
        return nn.functional.cross_entropy(head(preds), labels)

    before = head.weight.detach().clone()
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=0.01)
    fit(KerasModel(net, loss_fn, optimizer=optimizer, head=head), small)
    assert not torch.equal(before, head.weight)


def test_a_second_optimizer_beside_one_that_was_given(small):
    net = make_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=optimizer, optimizer2=adam())
    assert len(fit(model, small)) == 1
