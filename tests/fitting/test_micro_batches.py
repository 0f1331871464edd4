"""Batches that do not fit: in parts, with the same gradient, or refused with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.errors import OutOfMemoryError
from hotloop.fitting.micro_batches import split


class Limited(nn.Module):
    """Runs out of memory on more samples than it has room for, forward or backward."""

    def __init__(self, room: int, backward: bool = False, from_call: int = 1) -> None:
        super().__init__()
        self.room, self.backward, self.calls_left = room, backward, from_call

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls_left -= self.training
        if self.training and self.calls_left <= 0 and len(inputs) > self.room:
            if not self.backward:
                raise torch.OutOfMemoryError("out of memory: tried to allocate")
            inputs.register_hook(self._fail)
        return inputs

    def _fail(self, gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory: tried to allocate")


def fit(small, room, *, backward=False, from_call=1, loss=None, norm=False, **options):
    torch.manual_seed(0)
    first, relu, last = make_mlp()
    norms = [nn.BatchNorm1d(16)] if norm else []
    net = nn.Sequential(first, *norms, Limited(room, backward, from_call), relu, last)
    model = KerasModel(
        net, loss or nn.CrossEntropyLoss(), {"acc": Accuracy(task="multiclass", num_classes=2)},
        torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
    )  # fmt: skip
    loader = DataLoader(TensorDataset(*small), batch_size=32, shuffle=True)
    history = model.fit(loader, epochs=2, plot=False, **options)
    return net, history


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")])
@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 0.1}, {"on_non_finite": "skip"}])
def test_parts_give_the_same_numbers(small, capsys, backward, loss, options):
    expected, whole = fit(small, 1000, loss=loss, **options)
    capsys.readouterr()
    net, history = fit(small, 10, backward=backward, loss=loss, **options)
    said = capsys.readouterr().out
    assert said.count("out of memory") == 2  # halves, then quarters, and then it is known
    assert "in parts of 8 from now on" in said
    for left, right in zip(expected.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    assert history["train_loss"].tolist() == pytest.approx(whole["train_loss"].tolist(), rel=1e-5)
    assert whole["train_acc"].equals(history["train_acc"])


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 3.0])])
def test_ignored_labels_and_class_weights_count_as_in_the_whole_batch(small, weight):
    inputs, labels = small[0][:64], small[1][:64].clone()
    labels[:8] = labels[35:40] = -100  # a whole part, and some of another

    def train(room: int) -> tuple[nn.Module, list[float]]:
        torch.manual_seed(0)
        first, relu, last = make_mlp()
        net = nn.Sequential(first, Limited(room), relu, last)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        model = KerasModel(net, nn.CrossEntropyLoss(weight), optimizer=optimizer)
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=32)
        history = model.fit(loader, epochs=3, plot=False, quiet=True)
        return net, history["train_loss"].tolist()

    (expected, whole), (net, parts) = train(1000), train(10)
    assert parts == pytest.approx(whole, rel=1e-5)
    for left, right in zip(expected.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_a_group_of_batches_is_weighted_by_samples(small):
    expected, _ = fit(small, 1000, gradient_accumulation_steps=3)
    net, _ = fit(small, 10, gradient_accumulation_steps=3)
    for left, right in zip(expected.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    with pytest.raises(OutOfMemoryError, match="in the middle of a group"):
        fit(small, 10, gradient_accumulation_steps=3, backward=True, from_call=2)


def test_batch_normalisation_is_refused_with_the_reason(small):
    with pytest.raises(OutOfMemoryError, match=r"'1' \(BatchNorm1d\) normalises with the"):
        fit(small, 10, norm=True)


def test_one_sample_that_does_not_fit(small):
    with pytest.raises(OutOfMemoryError, match="a single sample does not fit"):
        fit(small, 0)


def test_split_keeps_structure():
    batch = {"ids": torch.arange(10).reshape(5, 2), "scale": torch.ones(3), "labels": torch.ones(5)}
    parts = split(batch, 2)
    assert [part["ids"].shape[0] for part in parts] == [3, 2]
    assert all(part["scale"] is batch["scale"] for part in parts)
    assert torch.equal(torch.cat([part["ids"] for part in parts]), batch["ids"])


def test_samples_that_are_listed_are_not_cut():
    batch = ([torch.ones(3, 8, 8)] * 2, [{"boxes": torch.ones(2, 4)}] * 2)
    assert split(batch, 2) == [batch]


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        if self.training:
            raise torch.OutOfMemoryError("out of memory: tried to allocate")
        return self.layer(torch.stack([image.flatten()[:4] for image in images]))


def test_a_batch_of_listed_samples_that_does_not_fit():
    batch = ([torch.ones(3, 8, 8)] * 2, [{"boxes": torch.ones(1, 4)}] * 2)
    with pytest.raises(OutOfMemoryError, match="since it lists its samples one by one"):
        KerasModel(Detector(), lambda preds, labels: preds.mean()).fit([batch], plot=False)


SCRIPT = """
import resource, torch
from torch import nn
from hotloop import KerasModel
torch.set_num_threads(1)
torch.manual_seed(0)
# each sample takes 40 MB between forward and backward
net = nn.Sequential(nn.Linear(10, 1_000_000), nn.Tanh(), nn.Linear(1_000_000, 2))
model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
data = torch.randn(64, 10), torch.randint(0, 2, (64,))
model.fit(tuple(part[:2] for part in data), batch_size=1, epochs=1, plot=False, exact=True)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
history = model.fit(data, batch_size=64, epochs=2, plot=False, exact=True)
print(history)
"""


def test_memory_of_the_host_that_really_runs_out(tmp_path: Path):
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory: batches of 64 are computed in parts of" in done.stdout
