from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import EpochRunner, KerasModel, StepRunner
from hotloop.errors import DiagnosisError, SettingsError
from hotloop.learning_rate.curve import LearningRateCurve


def make_data(num_samples: int = 640, batch_size: int = 32) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_samples, 4, generator=generator)
    labels = (inputs[:, 0] > inputs[:, 1]).long()
    return DataLoader(TensorDataset(inputs, labels), batch_size=batch_size, shuffle=True)


def make_model(optimizer_type=torch.optim.Adam, lr=1e-3, **options) -> KerasModel:
    torch.manual_seed(0)
    net = make_mlp()
    optimizer = optimizer_type(net.parameters(), lr=lr)
    return KerasModel(net, nn.CrossEntropyLoss(), None, optimizer, **options)


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.SGD])
def test_training_with_the_suggestion_goes_down(optimizer_type, tmp_path):
    data = make_data()
    model = make_model(optimizer_type)
    curve = model.find_lr(data)
    assert curve.diverged
    assert curve.apply() == curve.suggestion == model.optimizer.param_groups[0]["lr"]
    assert 1e-4 < curve.suggestion < 1
    history = model.fit(data, epochs=3, quiet=True, ckpt_path=tmp_path / "w")
    assert history["train_loss"].iloc[-1] < 0.5 * float(np.mean(curve.losses[:20]))


def test_nothing_else_is_changed():
    data, model = make_data(), make_model(torch.optim.Adam)
    model.fit(data, epochs=1, quiet=True, plot=False)
    before = copy.deepcopy((model.net.state_dict(), model.optimizer.state_dict()))
    training = model.net.training
    draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    model.find_lr(data, num_steps=30)
    after = (model.net.state_dict(), model.optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert model.net.training == training
    assert (random.getstate(), np.random.get_state()[1].tolist()) == draws[:2]
    assert torch.equal(torch.get_rng_state(), draws[2])
    assert list(model.history["epoch"]) == [1]
    assert model.EpochRunner is EpochRunner


def test_losses_are_those_of_a_plain_loop_whose_rate_rises():
    data, model = make_data(), make_model(torch.optim.SGD)
    net = copy.deepcopy(model.net)
    torch.manual_seed(5)
    curve = model.find_lr(data, min_lr=1e-3, max_lr=1.0, num_steps=45, exact=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    torch.manual_seed(5)
    batches = [batch for _ in range(3) for batch in data][:45]  # 20 batches a pass
    losses = []
    for rate, (inputs, labels) in zip(np.geomspace(1e-3, 1.0, 45), batches, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert curve.rates == pytest.approx(list(np.geomspace(1e-3, 1.0, 45)))
    assert curve.losses == pytest.approx(losses, rel=1e-5)
    assert not curve.diverged


def test_groups_keep_their_ratio_and_tensors_stay_the_same_object():
    torch.manual_seed(0)
    net = make_mlp()
    rate = torch.tensor(1e-3)
    groups = [
        {"params": net[0].parameters(), "lr": rate},
        {"params": net[2].parameters(), "lr": 1e-2},
    ]
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(groups, foreach=False))
    curve = model.find_lr(make_data())
    assert float(rate) == pytest.approx(1e-3)
    suggestion = curve.apply()
    assert model.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(suggestion)
    assert model.optimizer.param_groups[1]["lr"] == pytest.approx(10 * suggestion)


def test_batches_of_one_update_are_one_step():
    model = make_model(torch.optim.SGD)
    data = make_data(640, batch_size=16)
    seen = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model.optimizer = Counting(model.net.parameters(), lr=1e-3)
    curve = model.find_lr(
        data, min_lr=1e-4, max_lr=1e-2, num_steps=25, gradient_accumulation_steps=2
    )
    assert len(curve.losses) == 25
    assert seen[:25] == pytest.approx(curve.rates)


def test_the_loss_of_an_update_is_the_mean_over_all_its_samples():
    data, model = make_data(48), make_model(torch.optim.SGD)  # batches of 32 and of 16
    net = copy.deepcopy(model.net)
    rates = {"min_lr": 1e-3, "max_lr": 1.0, "num_steps": 20}
    curve = model.find_lr(data, **rates, exact=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    inputs, labels = data.dataset.tensors
    losses = []
    for rate in curve.rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert curve.losses == pytest.approx(losses, rel=1e-5)


def test_a_step_runner_of_ones_own_is_what_runs():
    calls = []

    class Doubled(StepRunner):
        def __call__(self, batch):
            calls.append(self.optimizer.param_groups[0]["lr"])
            losses, metrics = super().__call__(batch)
            return {name: 2 * value for name, value in losses.items()}, metrics

    plain = make_model(torch.optim.SGD)
    own = make_model(torch.optim.SGD, StepRunner=Doubled)
    options = dict(min_lr=1e-4, max_lr=1e-2, num_steps=20, exact=True)
    torch.manual_seed(3)
    expected = plain.find_lr(make_data(), **options).losses
    torch.manual_seed(3)
    assert own.find_lr(make_data(), **options).losses == pytest.approx(
        [2 * loss for loss in expected]
    )
    assert calls == pytest.approx(list(np.geomspace(1e-4, 1e-2, 20)))


def test_a_step_runner_that_returns_no_loss_is_refused():
    class Nameless(StepRunner):
        def __call__(self, batch):
            losses, metrics = super().__call__(batch)
            return {"loss": losses["train_loss"]}, metrics

    with pytest.raises(SettingsError, match="Nameless returned the losses loss, and the sweep"):
        make_model(StepRunner=Nameless).find_lr(make_data())


def test_an_infinite_loss_ends_it():
    class Explodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, inputs):
            return (inputs.sum(1, keepdim=True) * self.weight).exp()

    net = Explodes()
    model = KerasModel(
        net, lambda preds, _: (preds**2).mean(), None, torch.optim.SGD(net.parameters(), lr=1.0)
    )
    curve = model.find_lr(make_data(), max_lr=1e6)
    assert curve.diverged
    assert all(np.isfinite(curve.losses))


def test_where_no_rate_helps_there_is_no_suggestion():
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(320, 4, generator=generator), torch.zeros(320, dtype=torch.long)
    model = make_model()
    data = DataLoader(TensorDataset(inputs, labels), batch_size=32)
    curve = model.find_lr(data, min_lr=1e-12, max_lr=1e-11)
    with pytest.raises(DiagnosisError, match="went down at no learning rate of the sweep"):
        curve.apply()
    assert "the loss went down at none" in str(curve)
    assert model.optimizer.param_groups[0]["lr"] == 1e-3
    curve.plot()


def test_one_low_loss_at_the_beginning_is_no_lowest_mean():
    """The first running means are of few losses; a rate below the sweep's was suggested."""
    noise = np.random.default_rng(0).normal(size=80)
    rates = np.geomspace(1e-6, 1.0, 80)
    for losses in ([-2.5, *noise[1:]], [*noise[:3], -4.0, *noise[4:]]):
        curve = LearningRateCurve(list(rates), losses, False, make_model(), [1.0])
        assert curve.smoothed.index(min(curve.smoothed)) < 10
        with pytest.raises(DiagnosisError, match="went down at no learning rate"):
            print(curve.suggestion)
    falling = [-2.5, *noise[1:40], *(noise[40:] - np.linspace(0, 5, 40))]
    curve = LearningRateCurve(list(rates), falling, False, make_model(), [1.0])
    assert curve.suggestion > 1e-3


def test_an_optimizer_with_attributes_of_its_own():
    """torch leaves them out where it copies an optimizer; the copy's parameters are the copy's."""

    class Drawn(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.held = [param for group in self.param_groups for param in group["params"]]
            self.first = [param.detach().clone() for param in self.held]
            self.num_steps = 0

        @torch.no_grad()
        def step(self, closure=None):
            self.num_steps += 1
            super().step()
            for param, first in zip(self.held, self.first, strict=True):
                param.lerp_(first, 1e-3)

    model = make_model(Drawn)
    before = [param.detach().clone() for param in model.net.parameters()]
    curve = model.find_lr(make_data(), quiet=True)
    assert model.optimizer.num_steps == 0
    assert all(map(torch.equal, before, model.net.parameters()))
    assert min(curve.smoothed[40:]) < curve.smoothed[20] - 0.05  # it is the copy that learnt


def test_a_scheduler_holds_rates_of_its_own():
    model = make_model()
    model.lr_scheduler = torch.optim.lr_scheduler.StepLR(model.optimizer, 10)
    curve = model.find_lr(make_data())
    assert model.lr_scheduler.last_epoch == 0
    with pytest.raises(SettingsError, match=r"lr_scheduler \(StepLR\) sets rates"):
        curve.apply()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_lr": 0}, "min_lr=0 is no learning rate"),
        ({"max_lr": "1"}, "max_lr='1' is no learning rate"),
        ({"min_lr": 1.0, "max_lr": 0.1}, r"min_lr=1.0 is not below max_lr=0.1"),
        ({"num_steps": 5}, "num_steps=5 makes no curve"),
        ({"epoch": 3}, "fit has no argument epoch"),
    ],
)
def test_arguments_that_make_no_sweep_are_refused(arguments, words):
    with pytest.raises(SettingsError, match=words):
        make_model().find_lr(make_data(), **arguments)


def test_an_optimizer_that_makes_its_own_rate_is_trained_with_and_not_searched(tmp_path):
    """transformers' Adafactor holds lr=None where it makes steps relative to the weights."""

    class Relative(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.param_groups[0]["lr"] = None

        def step(self, closure=None):
            self.param_groups[0]["lr"] = 0.01
            super().step()
            self.param_groups[0]["lr"] = None

    model = make_model(Relative)
    history = model.fit(make_data(), epochs=1, plot=False, ckpt_path=tmp_path / "best")
    assert history["lr"].tolist() == [0.0]
    with pytest.raises(SettingsError, match="Relative has no learning rate in its param_groups"):
        model.find_lr(make_data())


def test_an_epoch_runner_of_ones_own_and_an_iterator_are_refused():
    class Own(EpochRunner):
        pass

    with pytest.raises(SettingsError, match="EpochRunner of its own"):
        make_model(EpochRunner=Own).find_lr(make_data())
    with pytest.raises(DiagnosisError, match="is an iterator"):
        make_model().find_lr(iter(list(make_data())))


def test_the_plot_is_a_picture_and_the_table_a_row_a_step(tmp_path):
    curve = make_model().find_lr(make_data())
    table = curve.table()
    assert list(table.columns) == ["lr", "loss", "smoothed"]
    assert len(table) == len(curve.losses)
    assert curve._repr_png_().startswith(b"\x89PNG")
    assert f"begin with lr={curve.suggestion:.2g}" in str(curve)


def test_a_compiled_step_gives_the_same_curve():
    options = dict(min_lr=1e-3, max_lr=1.0, num_steps=40)
    curves = []
    for compile in (False, True):
        torch.manual_seed(7)
        curves.append(make_model(torch.optim.SGD).find_lr(make_data(), compile=compile, **options))
    assert curves[1].losses == pytest.approx(curves[0].losses, rel=1e-4)
