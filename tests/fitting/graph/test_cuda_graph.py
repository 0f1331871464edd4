"""The logic around a CUDA graph, with a capture that calls the function again on the CPU.

What only CUDA can show (the capture itself) is in ``tests/gpu``.
"""

from __future__ import annotations

import random

import pytest
import torch
from called_again import CalledAgain, Recorded, use_stand_in
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import AUROC, Accuracy

from hotloop import KerasModel
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.graph.cuda_graph import CudaGraphEngine
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.graphed import GraphedStep
from hotloop.fitting.graph.output_ring import OutputRing
from hotloop.fitting.graph.pure_step import LossModule
from hotloop.fitting.graph.replay import ReplayEngine
from hotloop.fitting.graph.settings import GraphSettings
from hotloop.fitting.step import StepRunner

CPU = torch.device("cpu")


class Baked(CalledAgain):
    """A replay that computes nothing: what a graph of the wrong addresses looks like."""

    def replay(self):
        pass


def make_engine(capture=CalledAgain, make_optimizer=None, clip=None, net=None):
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = (make_optimizer or adam)(net.parameters())
    batch = [torch.randn(16, 4), torch.randint(2, (16,))]
    nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
    optimizer.step()
    optimizer.zero_grad()
    settings = GraphSettings(True, None, clip, lambda: False, print)
    graphed = GraphedStep(net, nn.CrossEntropyLoss(), optimizer, Accelerator(CPU), settings)
    graphed._module = LossModule(net, nn.CrossEntropyLoss(), batch)
    state = [p.detach().clone() for p in [*net.parameters(), *net.buffers()]]
    engine = CudaGraphEngine(graphed, batch, capture)
    after = [*net.parameters(), *net.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))
    return engine, net, optimizer


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.25, fused=True)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.25, momentum=0.9, fused=True)


@pytest.mark.parametrize("make_optimizer", [adam, sgd])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_replays_give_what_eager_steps_give(make_optimizer, clip):
    """Rates that are powers of two, which float32 and float64 hold alike: bit for bit."""
    engine, net, optimizer = make_engine(make_optimizer=make_optimizer, clip=clip)
    _, other, plain = make_engine(make_optimizer=make_optimizer)
    loss_fn = nn.CrossEntropyLoss()
    for step in range(4):
        batch = [torch.randn(16, 4), torch.randint(2, (16,))]
        for held in (optimizer, plain):
            held.param_groups[0]["lr"] = 0.25 / 2**step
        loss, preds = engine.step(batch)
        expected = other(batch[0])
        expected_loss = loss_fn(expected, batch[1])
        expected_loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(other.parameters(), clip)
        plain.step()
        plain.zero_grad()
        torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(preds, expected.detach(), rtol=1e-5, atol=1e-6)
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_replay_that_differs_is_refused():
    with pytest.raises(DeclinedError, match="a replay differs from the step itself"):
        make_engine(Baked)


class Noisy(nn.Module):
    """Kernels that add in an order of their own: now and then a result is another one."""

    def __init__(self, share):
        super().__init__()
        self.layer, self.share, self.random = nn.Linear(4, 2), share, random.Random(0)

    def forward(self, inputs):
        return self.layer(inputs) * (1 + self.share * self.random.choice([0, 0, 0, 1]))


class NoisyReplay(CalledAgain):
    """The same, where all calls happened to agree."""

    share, num_replays = 0.0, 0

    def replay(self):
        super().replay()
        self.num_replays += 1
        self.results[0].mul_(1 + self.share * (self.num_replays % 2))


def test_a_step_that_differs_from_itself_is_not_exact():
    engine, _, _ = make_engine(net=Noisy(1e-6))
    assert not engine.exact
    engine, _, _ = make_engine(net=Noisy(0.0))
    assert engine.exact


@pytest.mark.parametrize("share", [1e-6, 1e-2])
def test_replays_that_differ_from_each_other_by_little_count_as_noise(share, monkeypatch):
    monkeypatch.setattr(NoisyReplay, "share", share)
    if share > 1e-3:
        with pytest.raises(DeclinedError, match="a replay differs from the step itself"):
            make_engine(NoisyReplay)
    else:
        engine, _, _ = make_engine(NoisyReplay)
        assert not engine.exact


class Masks(nn.Module):
    """Leaves a mask out that masks nothing, but not while a graph is captured: transformers."""

    def __init__(self, read):
        super().__init__()
        self.layer, self.read = nn.Linear(4, 2), read

    def forward(self, inputs):
        hidden = self.layer(inputs)
        if torch.cuda.is_current_stream_capturing():
            return hidden.masked_fill(torch.zeros(2, dtype=torch.bool), 0.0) * 1.0001
        return self.read(hidden)


class Capturing(Recorded):
    """Replays without Python, and can be asked whether it captures."""

    is_under_way = False

    def __init__(self, function):
        Capturing.is_under_way = True
        try:
            super().__init__(function)
        finally:
            Capturing.is_under_way = False


@pytest.mark.parametrize("reads", [False, True])
def test_what_is_captured_is_what_is_called(reads, monkeypatch):
    """Code that asks whether it is captured is told no, where its answer changed the results."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Capturing.is_under_way)
    told = torch.cuda.is_current_stream_capturing

    def read(hidden):
        if reads and Capturing.is_under_way:
            raise RuntimeError("operation not permitted when stream is capturing")
        return hidden

    if reads:
        reason = "compute otherwise while a graph is captured, and cannot be captured as they are"
        with pytest.raises(DeclinedError, match=reason):
            make_engine(Capturing, net=Masks(read))
    else:
        engine, net, _ = make_engine(Capturing, net=Masks(read))
        batch = [torch.randn(16, 4), torch.randint(2, (16,))]
        expected = net(batch[0])
        assert torch.equal(engine.step(batch)[1], expected)
    assert torch.cuda.is_current_stream_capturing is told


def test_a_failed_capture_is_refused():
    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(DeclinedError, match="not permitted"):
        make_engine(fails)


def test_changes_of_what_is_baked_are_seen():
    engine, net, optimizer = make_engine()
    assert engine.is_current()
    optimizer.param_groups[0]["betas"] = (0.8, 0.999)
    with pytest.raises(DeclinedError, match="other than the learning rate"):
        engine.step([torch.randn(16, 4), torch.randint(2, (16,))])
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    net[0].weight.data = net[0].weight.data.clone()  # another address
    assert not engine.is_current()


def test_an_optimizer_without_its_fused_kernel_is_refused():
    with pytest.raises(DeclinedError, match="fused"):
        make_engine(make_optimizer=lambda p: torch.optim.Adam(p, lr=0.25))


def fit_with_stand_in(
    monkeypatch, train_data, compile_it=True, metrics=None, capture=CalledAgain, **options
):
    """Fit with the engine of CUDA and a capture that calls the step again."""
    engines = use_stand_in(monkeypatch, capture)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 2))
    metrics = metrics or {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, adam(net.parameters()))
    options = {"epochs": 3, "plot": False, "quiet": True, **options}
    history = model.fit(train_data, compile=compile_it, **options)
    numbers = history.drop(columns="epoch").to_numpy().tolist()
    return engines, numbers, [p.detach().clone() for p in net.parameters()]


def assert_same(first, second):
    assert first[1] == second[1]
    assert all(torch.equal(a, b) for a, b in zip(first[2], second[2], strict=True))


def test_a_step_that_must_be_looked_at_is_eager(small, monkeypatch):
    asked, looked_at = [], range(7, 30, 4)

    def must_look(step):
        asked.append(step.num_steps)
        return len(asked) in looked_at

    loader = DataLoader(TensorDataset(*small), 10, shuffle=True)
    eager = fit_with_stand_in(monkeypatch, loader, False)
    monkeypatch.setattr(StepRunner, "must_look", property(must_look))
    replayed = []
    replay = CalledAgain.replay
    monkeypatch.setattr(CalledAgain, "replay", lambda self: (replayed.append(1), replay(self)))
    graphed = fit_with_stand_in(monkeypatch, loader, True)
    assert_same(eager, graphed)
    assert len(asked) > 40
    # the step that builds it is eager as well, and two replays prove the graph
    assert len(replayed) == len(asked) - len(looked_at) - 1 + 2


@pytest.mark.parametrize("metric", [Accuracy, AUROC])
def test_a_fit_is_bitwise_the_eager_one(small, monkeypatch, metric):
    loader = DataLoader(TensorDataset(*small), 10, shuffle=True)
    runs = [
        fit_with_stand_in(
            monkeypatch, loader, mode, {"m": metric(task="multiclass", num_classes=2)}
        )
        for mode in (False, True)
    ]
    assert [len(engines) for engines, *_ in runs] == [0, 1]
    assert (runs[1][0][0]._ring is not None) == (metric is Accuracy)
    assert_same(*runs)


def test_tensors_that_come_again_are_read_where_they_lie(small, monkeypatch):
    batch, other = [[part[:50].clone() for part in small] for _ in range(2)]
    runs = [fit_with_stand_in(monkeypatch, [batch] * 30, mode) for mode in (False, True)]
    engine = runs[1][0][0]
    assert all(a is b for a, b in zip(engine._leaves, batch, strict=True))
    assert_same(*runs)
    data = [*[batch] * 10, other, *[batch] * 10]
    runs = [fit_with_stand_in(monkeypatch, data, mode) for mode in (False, True)]
    assert [engine._fixed for engine in runs[1][0]] == [[True, True], [False, False]]
    assert_same(*runs)


def test_rows_of_outputs_stay_for_some_steps():
    ring = OutputRing(torch.zeros(()), torch.zeros(3, 2), num_rows=4, keeps_preds=True)
    taken = []
    for step in range(1, 7):
        ring.write(torch.tensor(float(step)), torch.full((3, 2), float(step)))
        taken.append(ring.take(None))
        for back, (loss, preds) in enumerate(reversed(taken[-4:])):
            assert loss.item() == preds[0, 0].item() == step - back
    large = OutputRing(torch.zeros(()), torch.zeros(2**22, 2), num_rows=4, keeps_preds=True)
    preds = torch.ones(2**22, 2)
    assert large.take(preds)[1] is not preds
    unread = OutputRing(torch.zeros(()), preds, num_rows=4, keeps_preds=False)
    assert unread.take(preds)[1] is preds


def test_forward_and_loss_alone(small):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    loss_fn = nn.CrossEntropyLoss()
    settings = GraphSettings(True, None, None, lambda: False, print, trains=False, num_kept=2)
    graphed = GraphedStep(net, loss_fn, None, Accelerator(CPU), settings)
    batches = [[part[start : start + 20] for part in small] for start in range(0, 120, 20)]
    graphed._module = LossModule(net, loss_fn, batches[0])
    engine = ReplayEngine(graphed, batches[0], CalledAgain)
    with torch.no_grad():
        expected = [(loss_fn(net(x), y), net(x)) for x, y in batches]
        for batch, (loss, preds) in zip(batches, expected, strict=True):
            found = engine.step(batch)
            assert torch.equal(found[0], loss)
            assert torch.equal(found[1], preds)
        assert engine.is_current()
        net[0].weight.data = net[0].weight.data.clone()
        assert not engine.is_current()


def test_memory_that_runs_out_leaves_everything_as_it_was(small, monkeypatch, capsys):
    loader = DataLoader(TensorDataset(*small), 10, shuffle=True)
    eager = fit_with_stand_in(monkeypatch, loader, False)

    class RunsOut(CalledAgain):
        num_replays = 0

        def replay(self):
            super().replay()
            RunsOut.num_replays += 1
            if RunsOut.num_replays == 2:  # the first is the engine's own trial
                raise torch.OutOfMemoryError("CUDA out of memory")

    graphed = fit_with_stand_in(monkeypatch, loader, True, capture=RunsOut, quiet=False)
    assert "since a trial of it failed: CUDA out of memory" in capsys.readouterr().out
    assert RunsOut.num_replays == 2
    assert_same(eager, graphed)
