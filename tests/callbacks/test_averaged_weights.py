from __future__ import annotations

import copy

import pytest
import stopped
import torch
from builders import make_mlp
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy
from torchmetrics.classification import MulticlassAccuracy

from hotloop import AveragedWeights, KerasModel
from hotloop.errors import MetricError, SettingsError


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def make_model(net: nn.Module, lr: float = 0.05) -> KerasModel:
    accuracy = {"acc": Accuracy(task="multiclass", num_classes=2)}
    return KerasModel(
        net, nn.CrossEntropyLoss(), accuracy, torch.optim.SGD(net.parameters(), lr=lr)
    )


def by_hand(net, small, epochs, decay):
    """Return the losses of torch's averaged model, and its best weights."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    inputs, labels = small
    losses, states = [], []
    for _ in range(epochs):
        net.train()
        for some, their in zip(inputs.split(20), labels.split(20), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(some), their).backward()
            optimizer.step()
            averaged.update_parameters(net)
        averaged.eval()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(averaged(inputs), labels).item())
        states.append(copy.deepcopy(averaged.module.state_dict()))
    best = states[losses.index(min(losses))]
    del best["1.num_batches_tracked"]
    return losses, best


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"compile": True}])
def test_what_is_validated_and_loaded_back_is_torchs_average(small, tmp_path, options):
    losses, best = by_hand(make_net(), small, epochs=4, decay=0.9)
    net = make_net()
    model = make_model(net)
    history = model.fit(
        DataLoader(TensorDataset(*small), batch_size=20),
        DataLoader(TensorDataset(*small), batch_size=200),
        epochs=4,
        callbacks=[AveragedWeights(0.9, warm_up=False)],
        quiet=True,
        ckpt_path=tmp_path / "best.pt",
        **options,
    )
    assert history["val_loss"].tolist() == pytest.approx(losses, rel=1e-5)
    for state in (net.state_dict(), torch.load(tmp_path / "best.pt")):
        assert state.pop("1.num_batches_tracked") in (10, 20, 30, 40)  # no average of numbers
        torch.testing.assert_close(state, best, rtol=1e-5, atol=1e-6)
    assert not model.optimizer._optimizer_step_post_hooks


def test_training_goes_on_with_the_weights_themselves(small, tmp_path):
    histories = []
    for callbacks in ([], [AveragedWeights(0.99)]):
        torch.manual_seed(1)
        data = DataLoader(TensorDataset(*small), batch_size=20, shuffle=True)
        history = make_model(make_net()).fit(
            data, data, epochs=3, callbacks=callbacks, quiet=True, exact=True,
            ckpt_path=tmp_path / "w",
        )  # fmt: skip
        histories.append(history)
    assert histories[0]["train_loss"].tolist() == histories[1]["train_loss"].tolist()
    assert histories[0]["val_loss"].tolist() != histories[1]["val_loss"].tolist()


# of 12 calls of the loss an epoch the last two are the validation's, with the average in the net
@pytest.mark.parametrize("stop_at", [5, 10, 11, 12, 13, 24, 29])
def test_a_run_that_was_stopped_goes_on_with_its_average(small, tmp_path, stop_at):
    def make() -> KerasModel:
        net = make_net()
        return KerasModel(net, stopped.Loss(), optimizer=stopped.adam(net))

    def fit(path, stop_at=0):
        return stopped.fit(make, tmp_path / path, small, stop_at, callbacks=[AveragedWeights(0.9)])

    expected = fit("straight")
    assert fit("stopped", stop_at) is None
    assert fit("stopped") == expected


def test_weights_of_16_bits_are_averaged_in_32(small):
    net = nn.Linear(4, 2).to(torch.bfloat16)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    callback = AveragedWeights(0.999, warm_up=False)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), lr=0.0))
    callback.on_fit_start(model)
    model.optimizer.step()
    with torch.no_grad():
        net.bias.fill_(1.0)
    for _ in range(10):
        model.optimizer.step()
    callback.on_train_epoch_end(model)
    assert net.bias[0].item() == pytest.approx(1 - 0.999**10, rel=0.01)
    callback.on_validation_epoch_end(model)
    assert net.bias[0].item() == 1.0
    callback.on_fit_end(model)


def test_the_first_weights_are_forgotten_in_a_warm_up():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    callback = AveragedWeights(0.999)
    model = KerasModel(net, nn.MSELoss(), None, torch.optim.SGD(net.parameters(), lr=0.0))
    callback.on_fit_start(model)
    model.optimizer.step()  # the first weights are the average
    nn.init.constant_(net.weight, 1.0)
    expected = 0.0
    for num_updates in range(2, 30):
        model.optimizer.step()
        decay = (1 + num_updates) / (10 + num_updates)
        expected = decay * expected + (1 - decay)
    callback.on_train_epoch_end(model)
    assert net.weight.item() == pytest.approx(expected, rel=1e-5)
    callback.on_fit_end(model)


@pytest.mark.parametrize("stage", ["train", "val"])
def test_an_error_leaves_the_optimizer_and_the_trained_weights(small, tmp_path, stage):
    """Another fit goes on from there as one without the callback would."""

    class Fails(MulticlassAccuracy):
        fails = False

        def update(self, preds, labels):
            if Fails.fails:
                raise RuntimeError("mine")
            super().update(preds, labels)

    class FailsLater:
        def on_train_epoch_end(self, model):
            trained.append({name: t.clone() for name, t in model.net.state_dict().items()})
            Fails.fails = stage == "val"

        def on_validation_epoch_end(self, model):
            Fails.fails = stage == "train"

    trained = []
    net = make_mlp()
    model = KerasModel(
        net, nn.CrossEntropyLoss(), {"acc": Fails(2)},
        torch.optim.SGD(net.parameters(), lr=0.1),
    )  # fmt: skip
    callback = AveragedWeights(0.9)
    with pytest.raises(MetricError, match="mine"):
        model.fit(
            small, small, epochs=3, batch_size=20, callbacks=[FailsLater(), callback], quiet=True,
            exact=True, ckpt_path=tmp_path / "w",
        )  # fmt: skip
    assert not model.optimizer._optimizer_step_post_hooks
    if stage == "val":  # in training it may have failed after some updates more
        torch.testing.assert_close(dict(net.state_dict()), trained[-1], rtol=0, atol=0)


@pytest.mark.parametrize("decay", [1.0, -0.1, True, "0.9"])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(SettingsError, match="is no share of the average that stays"):
        AveragedWeights(decay)


def test_an_optimizer_without_hooks_is_refused(small, tmp_path):
    class Plain:
        def __init__(self, params):
            self.params = list(params)

        def step(self):
            pass

        def zero_grad(self):
            pass

    net = make_mlp()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, Plain(net.parameters()))
    with pytest.raises(SettingsError, match=r"follows the steps of a torch\.optim\.Optimizer"):
        model.fit(
            small,
            batch_size=50,
            callbacks=[AveragedWeights()],
            quiet=True,
            ckpt_path=tmp_path / "w",
        )
