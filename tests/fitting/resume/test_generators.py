"""Generators of one's own, wherever they are held, go on where they were."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from faults.jobs import fingerprint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from hotloop import KerasModel
from hotloop.data.purity import find_state


class StopHereError(Exception):
    pass


class StopInSecond:
    """Ends a fit that was saved after its first epoch."""

    def on_validation_epoch_end(self, model):
        if len(model.history["epoch"]) == 2:
            raise StopHereError


def collate(samples, rng):
    inputs, labels = default_collate(samples)
    return inputs + 0.1 * torch.randn(inputs.shape, generator=rng), labels


class Collator:
    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def collate(self, samples):
        return collate(samples, self.rng)


class Noise:
    """Not a module: a loss with noise, or noise for a step."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def draw(self) -> torch.Tensor:
        return 1 + 0.1 * torch.randn((), generator=self.rng)

    def __call__(self, preds, labels):
        return nn.functional.cross_entropy(preds, labels) * self.draw()


class OwnStep(KerasModel):
    def step(self, batch):
        noise = getattr(self, "noise", None) or self.kwargs["noise"]
        preds = self.net(batch[0])
        return self.loss_fn(preds, batch[1]) * noise.draw(), preds, batch[1]


def make_collate(kind: str, rng: torch.Generator):
    def with_default(samples, *, rng=rng):
        return collate(samples, rng)

    return {
        "partial": functools.partial(collate, rng=rng),
        "method": Collator(rng).collate,
        "default": with_default,
    }.get(kind)


def fit(folder: Path, small, kind: str, *callbacks):
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(7)
    data = TensorDataset(*small)
    loader = DataLoader(data, 20, shuffle=True, collate_fn=make_collate(kind, rng))
    loss = Noise(rng) if kind == "loss" else nn.CrossEntropyLoss()
    extras = {"noise": Noise(rng)} if kind == "extras" else {}
    model_class = OwnStep if kind in ("model", "extras") else KerasModel
    net = make_mlp()
    model = model_class(net, loss, optimizer=torch.optim.Adam(net.parameters()), **extras)
    if kind == "model":
        model.noise = Noise(rng)
    history = model.fit(
        loader, epochs=3, resume=True, quiet=True, ckpt_path=folder / "best", callbacks=callbacks
    )
    return fingerprint(model, history)


@pytest.mark.parametrize("kind", ["partial", "method", "default", "loss", "extras", "model"])
def test_generators_go_on(tmp_path: Path, small, kind: str):
    whole = fit(tmp_path / "whole", small, kind)
    with pytest.raises(StopHereError):
        fit(tmp_path / "cut", small, kind, StopInSecond())
    assert fit(tmp_path / "cut", small, kind) == whole


@pytest.mark.parametrize("kind", ["partial", "method", "default"])
def test_what_a_function_holds_is_found(kind: str):
    assert "torch Generator" in find_state(make_collate(kind, torch.Generator()))


def test_a_variable_that_is_assigned_later_is_no_error():
    def closing():
        return later

    assert find_state(closing) is None
    later = torch.Generator()
    assert "torch Generator" in find_state(closing)
