"""What torchkeras' users wrote runs with the import changed, and computes what it says."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

import hotloop
from hotloop import Accelerator, EpochRunner, KerasModel, StepRunner
from hotloop.errors import OptimizerError, SettingsError


class Step:
    """A step runner as torchkeras has it, with a second optimizer where it is given one."""

    def __init__(self, net, loss_fn, accelerator=None, stage="train", metrics_dict=None,
                 optimizer=None, lr_scheduler=None, second=None):  # fmt: skip
        self.net, self.loss_fn, self.metrics_dict, self.stage = net, loss_fn, metrics_dict, stage
        self.accelerator, self.optimizer, self.lr_scheduler = accelerator, optimizer, lr_scheduler
        self.second = second
        net.train(stage == "train")

    def __call__(self, batch):
        features, labels = batch
        with self.accelerator.autocast():
            loss = self.loss_fn(self.net(features).float(), labels)
        if self.stage == "train":
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.second is not None:
                self.second.step()
                self.second.zero_grad()
        return {self.stage + "_loss": loss.item()}, {}


class Epoch:
    """An epoch runner as torchkeras has it."""

    def __init__(self, step_runner, quiet=False):
        self.step_runner, self.stage = step_runner, step_runner.stage
        self.accelerator, self.net = step_runner.accelerator, step_runner.net

    def __call__(self, dataloader):
        losses = []
        for batch in dataloader:
            with self.accelerator.accumulate(self.net):
                found, _ = self.step_runner(batch)
            losses.append(float(found[self.stage + "_loss"]))
        return {self.stage + "_loss": sum(losses) / len(losses)}


def make_rows(num_rows=256):
    inputs = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(0))
    return inputs, inputs.sum(dim=1, keepdim=True)


def make_loader(num_rows=256, batch_size=32):
    return DataLoader(TensorDataset(*make_rows(num_rows)), batch_size)


def make_net(width=32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))


def fit(model, *data, **options):
    return model.fit(*data, **{"epochs": 2, "plot": False, "quiet": True, **options})


def weights_of(net):
    return [parameter.detach().clone() for parameter in net.parameters()]


def train_scaled_by_hand(net, optimizers, epochs=2):
    """Train in float16 as torch's documentation of ``GradScaler`` does, clipped to norm 1."""
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(epochs):
        for inputs, labels in make_loader():
            with torch.autocast("cpu", torch.float16):
                loss = mse_loss(net(inputs).float(), labels)
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()


@pytest.mark.parametrize("with_second", [False, True])
def test_gradients_are_clipped_without_their_loss_scale(with_second):
    def make(net):
        first, *others = [net[0].parameters(), net[2].parameters()] if with_second else [
            net.parameters()
        ]  # fmt: skip
        return torch.optim.SGD(first, lr=0.05), [torch.optim.SGD(p, lr=0.02) for p in others]

    by_hand, net = make_net(), make_net()
    optimizer, others = make(by_hand)
    train_scaled_by_hand(by_hand, [optimizer, *others])
    optimizer, others = make(net)
    model = KerasModel(
        net, nn.MSELoss(), None, optimizer, StepRunner=Step, second=others[0] if others else None
    )
    fit(model, make_loader(), mixed_precision="fp16")
    assert all(map(torch.equal, weights_of(by_hand), weights_of(net)))


def test_gradients_between_two_updates_are_clipped_as_if_unscaled():
    accelerator = Accelerator(torch.device("cpu"), "fp16", gradient_accumulation_steps=2)
    net = nn.Linear(8, 1)
    optimizer = accelerator.gate(torch.optim.SGD(net.parameters(), lr=0.1))
    accelerator.count_batch(last=False)
    accelerator.backward(mse_loss(net(make_rows()[0]), make_rows()[1]))
    scale = accelerator.scaler.get_scale()
    scaled = net.weight.grad.clone()
    norm = nn.utils.get_total_norm([p.grad for p in net.parameters()]) / scale
    assert accelerator.clip_grad_norm_(net.parameters(), 0.5 * norm).item() == pytest.approx(norm)
    torch.testing.assert_close(net.weight.grad, 0.5 * scaled, rtol=1e-4, atol=0.0)
    accelerator.clip_grad_value_(net.parameters(), 1e-3)
    assert float(net.weight.grad.abs().max()) == pytest.approx(1e-3 * scale)
    optimizer.step()  # the group is not over
    assert net.weight.grad is not None


class Logged(StepRunner):
    """hotloop's own step, with a line around it."""

    def __call__(self, batch):
        losses, metrics = super().__call__(batch)
        losses[self.stage + "_rate"] = metrics["lr"] if self.stage == "train" else 0.0
        losses[self.stage + "_running"] = metrics[self.stage + "_acc"]
        assert not dict(metrics)
        with pytest.raises(KeyError):
            metrics["acc"]
        return losses, metrics


@pytest.mark.parametrize("options", [{"mixed_precision": "fp16"}, {},
                                     {"gradient_accumulation_steps": 2}])  # fmt: skip
def test_a_derived_step_runner_steps_once_and_reads_metrics_and_rate(small, options):
    results = []
    for runner in (StepRunner, Logged):
        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
        optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
        model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, StepRunner=runner)
        loader = DataLoader(TensorDataset(*small), 50)
        history = fit(model, loader, loader, exact=True, **options)
        results.append(weights_of(net))
    assert all(map(torch.equal, *results))
    assert history["train_rate"].tolist() == [0.25, 0.25]
    assert history["val_running"].between(0.0, 1.0).all()


def norms_of_updates(data, step_runner, epoch_runner):
    seen = []

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["params"][0].grad.norm().item())
            return super().step(closure)

    net = make_net()
    model = KerasModel(
        net, nn.MSELoss(), None, Counted(net.parameters(), lr=0.05), StepRunner=step_runner,
        EpochRunner=epoch_runner,
    )  # fmt: skip
    fit(model, data, gradient_accumulation_steps=3, exact=True)
    return seen


@pytest.mark.parametrize("known_length", [True, False])
@pytest.mark.parametrize("runner", [Step, StepRunner])
def test_an_epoch_of_ones_own_ends_its_group(runner, known_length):
    """Five batches in groups of three: two updates an epoch, each on its own epoch's batches."""

    class Stream:
        def __iter__(self):
            return iter(make_loader(100, 20))

    data = make_loader(100, 20) if known_length else Stream()
    runs = {epoch: norms_of_updates(data, runner, epoch) for epoch in (EpochRunner, Epoch)}
    assert len(runs[Epoch]) == 4
    assert runs[Epoch] == pytest.approx(runs[EpochRunner])


def test_further_optimizers_and_schedulers_step_where_a_group_ends():
    net = make_net()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    second = torch.optim.SGD(net[2].parameters(), lr=0.1)
    counts = []
    second.register_step_post_hook(lambda *_: counts.append(1))
    model = KerasModel(net, nn.MSELoss(), None, optimizer, StepRunner=Step, second=second)
    fit(model, make_loader(), gradient_accumulation_steps=4)  # of 8 batches, twice
    assert len(counts) == 4


class Adapters(KerasModel):
    """Saves a folder, as those who train adapters of language models do."""

    def save_ckpt(self, ckpt_path="checkpoint", accelerator=None):
        net = accelerator.unwrap_model(self.net)
        folder = self.folder(ckpt_path)
        folder.mkdir(exist_ok=True)
        torch.save(net.state_dict(), folder / "adapter.bin")

    def load_ckpt(self, ckpt_path="checkpoint"):
        self.net.load_state_dict(torch.load(self.folder(ckpt_path) / "adapter.bin"))

    def folder(self, path):
        return self.root / path


def test_a_checkpoint_that_is_a_folder_is_written_with_the_accelerator_and_again(tmp_path):
    for _ in range(2):
        net = make_net()
        model = Adapters(net, nn.MSELoss(), None, torch.optim.Adam(net.parameters()))
        model.root = tmp_path
        fit(model, make_loader(), make_loader(), ckpt_path="lora")
    assert (tmp_path / "lora" / "adapter.bin").is_file()


def test_a_step_runner_may_be_any_callable():
    net = make_net()
    runner = functools.partial(Step, second=None)
    optimizer = torch.optim.Adam(net.parameters())
    model = KerasModel(net, nn.MSELoss(), None, optimizer, StepRunner=runner)
    history = fit(model, make_loader(), epochs=3, monitor="train_loss")
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, inputs):
        return {"logits": self.first(inputs), "aux": self.second(inputs)}


def test_a_loss_may_read_all_of_an_output_with_logits(small):
    def whole(preds, labels):
        return cross_entropy(preds["logits"], labels) + cross_entropy(preds["aux"], labels)

    losses = {}
    for name, loss_fn in {"whole": whole, "logits": cross_entropy}.items():
        torch.manual_seed(0)
        net = TwoHeads()
        metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
        model = KerasModel(net, loss_fn, metrics, torch.optim.Adam(net.parameters(), lr=0.05))
        before = net.second.weight.detach().clone()
        history = fit(model, DataLoader(TensorDataset(*small), 50), epochs=8)
        assert history["train_acc"].iloc[-1] > 0.8
        assert torch.equal(before, net.second.weight) == (name == "logits")
        losses[name] = history["train_loss"].iloc[0]
    assert losses["whole"] > losses["logits"]


def test_a_loss_that_takes_both_is_given_what_a_loop_by_hand_would_give_it(small):
    class Auxiliary(TwoHeads):
        def forward(self, inputs):  # as torchvision's GoogLeNet: more in training
            heads = super().forward(inputs)
            return heads if self.training else heads["logits"]

    def either(preds, labels):
        if isinstance(preds, torch.Tensor):
            return cross_entropy(preds, labels)
        return cross_entropy(preds["logits"], labels) + cross_entropy(preds["aux"], labels)

    net = Auxiliary()
    before = net.second.weight.detach().clone()
    data = DataLoader(TensorDataset(*small), 50)
    model = KerasModel(net, either, None, torch.optim.Adam(net.parameters(), lr=0.05))
    history = model.fit(data, data, epochs=1, plot=False, mixed_precision="bf16")
    assert not torch.equal(before, net.second.weight)
    assert history["train_loss"].iloc[0] > 1.5 * history["val_loss"].iloc[0]


def test_a_loss_that_takes_neither_says_what_it_says_of_the_logits(small):
    def refuses(preds, labels):
        raise ValueError("not today")

    net = TwoHeads()
    model = KerasModel(net, refuses, None, torch.optim.Adam(net.parameters()))
    with pytest.raises(ValueError, match=r"refuses refused predictions float32 \(50, 2\)"):
        fit(model, DataLoader(TensorDataset(*small), 50))


def test_runners_are_called_by_hand(small):
    net = nn.Linear(4, 2)
    loader = DataLoader(TensorDataset(*small), 50)
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    runner = StepRunner(net, nn.CrossEntropyLoss(), None, "val", metrics)

    class Loud(EpochRunner):
        def __call__(self, dataloader):
            return {"calls": 1, **super().__call__(dataloader)}

    with torch.no_grad():
        assert list(Loud(runner)(loader)) == ["calls", "val_loss", "val_acc"]
    with pytest.raises(SettingsError, match=r"was given a builtins\.object: pass hotloop.Acc"):
        StepRunner(net, nn.CrossEntropyLoss(), object())


def test_prepare_reads_a_loaders_batches_on_the_device():
    accelerator = Accelerator(torch.device("meta"))
    net, loader = accelerator.prepare(nn.Linear(2, 2), make_loader())
    assert net.weight.device.type == "meta"
    assert len(loader) == 8
    assert all(part.device.type == "meta" for batch in loader for part in batch)


def test_the_model_takes_inputs_from_anywhere():
    net = nn.Linear(8, 2)
    model = KerasModel(net, nn.MSELoss())
    net.to("meta")
    assert model(make_rows()[0]).device.type == "meta"


def test_optimizers_in_a_list_are_told_where_to_go():
    net = make_net()
    with pytest.raises(OptimizerError, match="further optimizers to your StepRunner as keyword"):
        KerasModel(net, nn.MSELoss(), None, [torch.optim.Adam(net.parameters())])


def test_fit_ddp_trains_in_processes():
    net = make_net()
    before = weights_of(net)
    model = KerasModel(net, nn.MSELoss(), None, torch.optim.Adam(net.parameters()))
    history = model.fit_ddp(2, make_loader(), make_loader(), 1, plot=False, cpu=True)
    assert len(history) == 1
    assert not any(map(torch.equal, before, weights_of(net)))
    assert set(model.evaluate_ddp(2, make_loader(), quiet=True)) == {"val_loss"}


IMPORTS = """
import hotloop as torchkeras
from torch import nn
import torch
torchkeras.summary(nn.Linear(3, 2), input_data=torch.zeros(2, 3))
from hotloop.summary import summary
summary(nn.Linear(3, 2), input_data=torch.zeros(2, 3))
torchkeras.summary(nn.Linear(3, 2), input_data=torch.zeros(2, 3))
print(torchkeras.kerasmodel.KerasModel.__name__, torchkeras.vlog.VLog.__name__)
"""


def test_modules_are_reached_as_attributes_and_summary_stays_a_function():
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    assert found.stdout.count("Total params: 8") == 3
    assert found.stdout.splitlines()[-1] == "KerasModel VLog"


@pytest.mark.parametrize(("name", "mend"), [
    ("LightModel", "KerasModel(net, loss_fn, metrics_dict, optimizer) takes the plain net"),
    ("tabular", "keep torchkeras installed for torchkeras.tabular"),
    ("plots", "fit(plot=True) draws the curves"),
])  # fmt: skip
def test_what_is_left_to_torchkeras_says_so(name, mend):
    with pytest.raises(ImportError) as caught:
        exec(f"from hotloop import {name}")
    assert f"hotloop has no '{name}', which torchkeras has" in str(caught.value)
    assert mend in str(caught.value)
    assert not hasattr(hotloop, "anything_else")
