"""NaN and infinite losses and gradients: named, left out, or gone back from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from builders import SpoiledNet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.checkpoint.run import RunFolder
from hotloop.errors import NonFiniteError, SettingsError
from hotloop.fitting.non_finite import FiniteWatch, first_bad_gradient, scale_learning_rates


def fit(small, spoil, epochs=2, schedule=False, **options):
    torch.manual_seed(0)
    net = SpoiledNet(spoil)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4) if schedule else None
    model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer, scheduler)
    loader = DataLoader(TensorDataset(*small), batch_size=20)
    return model, loader, lambda: model.fit(loader, loader, epochs=epochs, plot=False, **options)


def test_the_default_stops_with_the_best_weights(small):
    model, loader, run = fit(small, {15: "loss"})
    with pytest.raises(NonFiniteError, match="step 5 of epoch 2") as raised:
        run()
    assert raised.value.indices == list(range(80, 100))
    assert "its samples are 80, 81, 82, 83, 84, 85, 86, 87 and 12 more" in str(raised.value)
    assert model.evaluate(loader, quiet=True)["val_loss"] == pytest.approx(
        min(model.history["val_loss"]), abs=1e-6
    )


def test_a_bad_gradient_with_a_finite_loss_is_named_by_its_own_step(small):
    model, _, run = fit(small, {15: "gradient"})
    with pytest.raises(
        NonFiniteError, match=r"gradients of step 5 of epoch 2 .* the parameter 'norm.weight'"
    ) as raised:
        run()
    assert raised.value.step == 5
    assert raised.value.indices == list(range(80, 100))
    assert all(bool(torch.isfinite(p).all()) for p in model.net.parameters())


def test_a_bad_gradient_of_the_last_step_is_seen_before_the_validation(small):
    model, _, run = fit(small, {20: "gradient"})
    with pytest.raises(NonFiniteError, match=r"'norm.weight' .* at the end of epoch 2 \(step 10\)"):
        run()
    assert len(model.history["val_loss"]) == 1
    assert all(bool(torch.isfinite(p).all()) for p in model.net.parameters())


def test_before_there_are_best_weights_those_of_the_last_checkpoint_are_loaded(small, capsys):
    model, _, run = fit(small, {10: "gradient"}, save_every_steps=4)
    with pytest.raises(NonFiniteError, match="at the end of epoch 1"):
        run()
    latest = RunFolder(Path("checkpoint.run")).latest(pytest.fail)
    saved = latest.state["training"]["net"]["tensors"]
    assert all(torch.equal(saved[name], p) for name, p in model.net.named_parameters())
    assert f"the net has the weights of step {latest.step}," in capsys.readouterr().out


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_skip_leaves_the_step_out(small, capsys, how):
    model, _, run = fit(small, {3: how, 15: how}, on_non_finite="skip")
    history = run()
    assert [(epoch, step) for epoch, step, _ in model.skipped_steps] == [(1, 3), (2, 5)]
    expected = "the loss is nan" if how == "loss" else "the gradient of 'norm.weight'"
    assert expected in model.skipped_steps[0][2]
    assert "step 3 of epoch 1 was left out, since the" in capsys.readouterr().out
    assert history.notna().all(axis=None)
    assert all(bool(torch.isfinite(t).all()) for t in model.net.state_dict().values())
    assert model.optimizer.state[model.net.layer.weight]["step"] == 18


def test_only_the_step_itself_is_missing_from_the_average(small):
    model, loader, _ = fit(small, {3: "loss"})
    model.optimizer = torch.optim.SGD(model.net.parameters(), lr=0.0)
    plain = SpoiledNet({}).train()
    plain.load_state_dict(model.net.state_dict())
    losses = [model.loss_fn(plain(inputs), labels).item() for inputs, labels in loader]
    history = model.fit(loader, epochs=1, quiet=True, on_non_finite="skip")
    expected = sum(losses[:2] + losses[3:]) / 9
    assert history["train_loss"][0] == pytest.approx(expected, rel=1e-5)


def test_an_epoch_of_which_every_step_is_left_out_has_a_row(small):
    _, _, run = fit(small, dict.fromkeys(range(11, 21), "loss"), on_non_finite="skip")
    history = run()
    assert list(history["epoch"]) == [1, 2]
    assert history["train_loss"].isna().tolist() == [False, True]


def test_looking_changes_no_number(small):
    expected = fit(small, {})[2]()
    assert fit(small, {}, on_non_finite="skip", ckpt_path="other")[2]().equals(expected)


def test_rewind_goes_back_with_a_lower_rate(small, capsys):
    _, _, run = fit(small, {15: "loss"}, on_non_finite="rewind", resume=True)
    history = run()
    assert list(history["epoch"]) == [1, 2]
    assert history["lr"].tolist() == [0.01, 0.005]
    assert "back to the run in 'checkpoint.run' at epoch 2, step 10, with 0.5 of the learning rate"\
        in capsys.readouterr().out  # fmt: skip
    assert history.notna().all(axis=None)


class ImageNet(nn.Sequential):
    """A convolutional net whose loss is NaN at one training step."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        self.step = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.step += self.training
        return super().forward(inputs * (math.nan if self.training and self.step == 17 else 1.0))


def test_rewind_keeps_weights_and_momentum_in_one_memory_layout():
    def rewound(exact: bool) -> list[float]:
        torch.manual_seed(0)
        net = ImageNet()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        images = torch.randn(60, 3, 8, 8)
        loader = DataLoader(TensorDataset(images, (images.mean((1, 2, 3)) > 0).long()), 6)
        history = KerasModel(net, nn.CrossEntropyLoss(), optimizer=optimizer).fit(
            loader, epochs=3, quiet=True, exact=exact, on_non_finite="rewind", resume=True,
            ckpt_path=f"exact-{exact}", monitor="train_loss",
        )  # fmt: skip
        assert history["lr"].tolist() == [0.05, 0.025, 0.025]
        return history["train_loss"].tolist()

    assert rewound(exact=False) == pytest.approx(rewound(exact=True), rel=1e-3)


def test_rewind_gives_up_after_three(small):
    spoil = dict.fromkeys(range(15, 100), "loss")
    _, _, run = fit(small, spoil, on_non_finite="rewind", resume=True)
    with pytest.raises(NonFiniteError):
        run()


def test_schedulers_follow_the_lower_rate(small):
    _, _, run = fit(small, {15: "loss"}, schedule=True, on_non_finite="rewind", resume=True)
    history = run()
    # four steps a tenth each: 10 steps make two of them, 20 make five
    assert history["lr"].tolist() == pytest.approx([0.01 * 0.1**2, 0.005 * 0.1**5])


def test_own_step_runners_and_graphs(small, capsys):
    model, loader, _ = fit(small, {})

    class Own(KerasModel.StepRunner):
        def __call__(self, batch):
            return super().__call__(batch)

    model.StepRunner = Own
    with pytest.raises(SettingsError, match="on_non_finite='skip' has no effect"):
        model.fit(loader, quiet=True, on_non_finite="skip")
    _, _, run = fit(small, {}, on_non_finite="skip", compile=True)
    run()
    assert "since on_non_finite looks at gradients" in capsys.readouterr().out


def test_a_parameter_without_elements_is_no_matter(small):
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.nothing = nn.Linear(4, 2), nn.Parameter(torch.zeros(0))

        def forward(self, inputs):
            return self.layer(inputs) + self.nothing.sum()

    net = Empty()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    loader = DataLoader(TensorDataset(*small), 20)
    assert len(model.fit(loader, epochs=2, plot=False, quiet=True, cpu=True)) == 2


def test_first_bad_gradient_names_the_first():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert first_bad_gradient(layers.named_parameters()) is None
    for parameter in layers.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert first_bad_gradient(layers.named_parameters()) is None
    layers[1].weight.grad[0, 1] = math.inf
    assert first_bad_gradient(layers.named_parameters()) == "1.weight"


def test_the_watch_of_a_device_looks_now_and_then():
    now = [0.0]
    watch = FiniteWatch(lambda: now[0])
    losses = torch.tensor([1.0, float("nan")])
    assert not watch.saw_bad(lambda: losses)  # not yet due
    now[0] = 1.0
    assert not watch.saw_bad(lambda: losses)  # the copy has been started
    assert watch.saw_bad(lambda: losses)
    assert not watch.saw_bad(lambda: None)


def test_every_rate_is_scaled():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=10)
    before = {name: optimizer.param_groups[0][name] for name in ("lr", "max_lr", "min_lr")}
    scale_learning_rates(optimizer, scheduler, 0.5)
    assert {name: optimizer.param_groups[0][name] for name in before} == {
        name: value / 2 for name, value in before.items()
    }


class Masked(nn.Module):
    """A net with a mask of minus infinities, as those of attention are, among its parameters."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        mask = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
        self.mask = nn.Parameter(mask, requires_grad=False)

    def forward(self, inputs):
        weights = self.mask.softmax(dim=1)
        return self.layer(inputs) @ weights


@pytest.mark.parametrize("options", [{}, {"resume": True}])
def test_infinities_that_are_not_trained_are_no_matter(small, options):
    net = Masked()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    loader = DataLoader(TensorDataset(*small), batch_size=20)
    history = model.fit(loader, loader, epochs=2, plot=False, quiet=True, **options)
    assert len(history) == 2
    if options:
        assert RunFolder(Path("checkpoint.run")).latest(pytest.fail).step == 20
