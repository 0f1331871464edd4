"""What no graph serves stays eager, and the reason names it."""

from __future__ import annotations

import contextlib
import functools
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel

EAGER = "compile: the training step runs eagerly, since"


@pytest.mark.parametrize("turn_off", ["stance", "config"])
def test_nothing_is_proven_while_dynamo_is_off(small, capsys, turn_off):
    """A proof would run the net itself then: its counter, its buffers, its random numbers."""

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout(0.1))
            self.num_calls = 0

        def forward(self, inputs):
            self.num_calls += 1
            return self.layers(inputs) * (1 + 1e-3 * self.num_calls)

    runs = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        net = Counts()
        loader = DataLoader(TensorDataset(*small), 20, shuffle=True)
        model = KerasModel(
            net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters(), 0.01)
        )
        with contextlib.ExitStack() as stack:
            if turn_off == "stance":
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            else:
                stack.enter_context(torch._dynamo.config.patch(disable=True))
            history = model.fit(loader, epochs=2, plot=False, cpu=True, compile=compile_it)
        runs.append((history["train_loss"].tolist(), net.num_calls, torch.get_rng_state().tolist()))
    assert runs[0] == runs[1]
    assert f"{EAGER} Dynamo, which proves steps, is turned off" in capsys.readouterr().out


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.sign()

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return gradient * (inputs.abs() < 1)


class WithPart(nn.Module):
    """A layer, with a part before it that no graph serves."""

    def __init__(self, part):
        super().__init__()
        self.part, self.layer = part, nn.Linear(4, 2)

    def forward(self, inputs):
        return self.layer(self.part(inputs))


class PowerOf(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, inputs):
        return (self.weight * inputs).abs()


class SparseRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(3, 4, sparse=True)

    def forward(self, inputs):
        return inputs + self.rows(torch.zeros((), dtype=torch.int64))


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(self, inputs)


def count(part, inputs):
    part.num_calls = getattr(part, "num_calls", 0) + 1
    return inputs


def branch(part, inputs):
    return inputs if inputs.sum() > 0 else -inputs


def make_compiled():
    part = nn.Linear(4, 4)
    part.compile(backend="eager")
    return part


@pytest.mark.parametrize(
    ("make_part", "reason"),
    [
        (lambda: Called(count), "which a graph does not: an attribute of net.part"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
         "a buffer of net.part.parametrizations.weight.0 that is assigned"),
        (lambda: Called(branch), "(test_prover.py, line "),
        (lambda: nn.Sequential(nn.Linear(4, 4), Called(lambda _, inputs: Straight.apply(inputs))),
         "calls an autograd.Function"),
        (lambda: Called(lambda _, inputs: inputs + inputs[inputs > 0].sum()),
         "a tensor whose shape depends on values (aten.nonzero.default)"),
        (make_compiled, "a part of the net (Linear) is compiled already"),
        (lambda: torch.compile(nn.Linear(4, 4), backend="eager"),
         "a part of the net (Linear) is compiled already"),
        (PowerOf, "the net has complex parameters"),
        (SparseRow, "an embedding makes sparse gradients"),
    ],
)  # fmt: skip
def test_the_reason_says_what_no_graph_serves(small, capfd, make_part, reason):
    torch.manual_seed(0)
    net = WithPart(make_part())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
    loader = DataLoader(TensorDataset(*small), 20)
    model.fit(loader, epochs=1, plot=False, cpu=True, compile=True)
    said = capfd.readouterr()
    assert EAGER in said.out
    assert reason in said.out
    assert "Traceback" not in said.err  # of torch's own log


@pytest.mark.parametrize("method", ["once", "some", "each"])
def test_what_a_logger_says_once_is_no_side_effect(small, capfd, caplog, monkeypatch, method):
    """transformers' ``warning_once``, which GPT-2 calls in each forward; other texts are said."""

    def warn(logger, text):
        logger.warning(text)

    monkeypatch.setattr(logging.Logger, "once", functools.lru_cache(None)(warn), raising=False)
    monkeypatch.setattr(logging.Logger, "too", functools.lru_cache(None)(warn), raising=False)
    monkeypatch.setattr(logging.Logger, "some", functools.lru_cache(1)(warn), raising=False)
    monkeypatch.setattr(logging.Logger, "each", warn, raising=False)
    logger = logging.getLogger("hotloop.tests")

    def say(_, inputs):
        getattr(logger, method)("said by forward")
        return inputs

    net = WithPart(Called(say))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
    loader = DataLoader(TensorDataset(*small), 20)
    model.fit(loader, epochs=2, plot=False, cpu=True, compile=True)
    captured = capfd.readouterr()
    said = captured.out
    assert ("compile: the training step is one graph" in said) == (method == "once")
    assert (EAGER in said) == (method != "once")
    assert "Traceback" not in captured.err  # of torch's own log
    num_steps = 2 * len(loader)
    assert caplog.text.count("said by forward") == (num_steps if method == "each" else 1)
