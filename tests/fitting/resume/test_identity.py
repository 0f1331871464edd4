"""A run goes on with what it is made of, and with nothing else."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hotloop import Callback, KerasModel
from hotloop.errors import CheckpointError


class Weighted(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(preds * self.weight, labels)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def make_model(optimizer=adam, loss=Weighted, schedule=None, **extras):
    net, loss_fn = make_mlp(), loss()
    made = optimizer([*net.parameters(), *loss_fn.parameters()])
    scheduler = schedule and schedule(made)
    return KerasModel(net, loss_fn, optimizer=made, lr_scheduler=scheduler, **extras)


def fit(model, data, val=None, epochs=1, **options):
    loader = DataLoader(TensorDataset(*data), 20, shuffle=True)
    return model.fit(loader, val, epochs=epochs, resume=True, quiet=True, **options)


def bits_of(model):
    return [value.clone() for part in (model.net, model.loss_fn) for value in part.parameters()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": torch.optim.AdamW}, r"another optimizer \(Adam there and AdamW here\)"),
        ({"optimizer": torch.optim.SGD}, r"another optimizer \(Adam there and SGD here\)"),
        ({"optimizer": lambda ps: adam(ps[::-1])}, "Adam of other parameters, or of the same in"),
        ({"optimizer": lambda ps: adam(ps[:-1])}, "Adam of other parameters"),
        ({"schedule": lambda o: StepLR(o, 1)}, r"scheduler \(LambdaLR there and StepLR here\)"),
        ({"schedule": None}, r"scheduler \(LambdaLR there and none here\)"),
        ({"loss": nn.CrossEntropyLoss}, "another optimizer|another loss"),
        ({"teacher": make_mlp(5)}, "another teacher: '2.weight'"),
    ],
)
def test_other_objects_are_refused_before_anything_is_changed(small, change, message):
    made = {"schedule": lambda optimizer: LambdaLR(optimizer, lambda step: 1.0)}
    fit(make_model(**{**made, "teacher": make_mlp()}), small)
    other = make_model(**{**made, "teacher": make_mlp(), **change})
    before, optimizer = bits_of(other), other.optimizer.state_dict()
    with pytest.raises(CheckpointError, match=message):
        fit(other, small, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(before, bits_of(other), strict=True))
    assert other.optimizer.state_dict() == optimizer


def test_other_data_is_refused_between_epochs_too(small):
    inputs, labels = small
    val = [(inputs[:50], labels[:50]), (inputs[50:], labels[50:])]
    fit(make_model(), small, val)
    for data, other_val, message in [
        ((inputs[:100], labels[:100]), val, r"train_data \(10 batches there and 5 here\)"),
        ((inputs[:190], labels[:190]), val, r"train_data \(200 samples there and 190 here\)"),
        ((inputs + 1.0, labels), val, "train_data .as many samples, with other values"),
        (small, [(part * 2.0, target) for part, target in val], "another val_data"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            fit(make_model(), data, other_val, epochs=2)
    assert len(fit(make_model(), small, val, epochs=2)) == 2


class Untouched(Dataset):
    """Samples that nobody may read but the loader."""

    num_reads = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.num_reads += 1
        return torch.full((4,), float(index)), index % 2


def test_data_that_computes_its_samples_is_told_apart_by_numbers_alone():
    def fit_with(loader, epochs):
        model = KerasModel(nn.Linear(4, 2), nn.CrossEntropyLoss())
        model.fit(loader, epochs=epochs, resume=True, quiet=True, exact=True)

    data = Untouched()
    fit_with(DataLoader(data, 10), 1)
    assert data.num_reads == 40
    fit_with(DataLoader(data, 10), 2)
    assert data.num_reads == 80
    with pytest.raises(CheckpointError, match=r"10 samples a batch there and 12 here"):
        fit_with(DataLoader(data, 12), 2)


class Counts:
    """Counts epochs, from where it was."""

    def __init__(self) -> None:
        self.count = 0

    def on_validation_epoch_end(self, model) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class CountsTwice(Counts):
    def on_validation_epoch_end(self, model) -> None:
        self.count += 2


def test_callbacks_get_the_states_of_their_class_wherever_they_stand(small):
    fit(make_model(), small, epochs=2, callbacks=[CountsTwice(), Counts()])
    new, first, second = CountsTwice(), Counts(), Counts()
    fit(make_model(), small, epochs=3, callbacks=[first, Callback(), new, second])
    assert (first.count, new.count, second.count) == (3, 6, 1)
