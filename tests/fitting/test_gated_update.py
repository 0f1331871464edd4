"""Bad steps left out by the device itself: the same as when they are waited for, without waiting.

On an accelerator that is the usual way; here the CPU is told to do as one.
"""

from __future__ import annotations

import math

import pytest
import torch
from builders import SpoiledNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.fitting import watched_step
from hotloop.fitting.gated_update import GatedUpdate, can_gate

CPU = torch.device("cpu")
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


def fit(small, spoil, optimizer="adam", **options):
    torch.manual_seed(0)
    net = SpoiledNet(spoil, gradient=math.inf)
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer, schedule)
    loader = DataLoader(TensorDataset(*small), batch_size=20)
    options = {"on_non_finite": "skip", "epochs": 2, "plot": False, "quiet": True, **options}
    return model, model.fit(loader, loader, **options)


@pytest.fixture
def gated(monkeypatch):
    """Let the CPU do as an accelerator does; tells how many steps were gated."""
    judged, judge = [], GatedUpdate.judge

    def counted(self, loss, step):
        judged.append(step)
        return judge(self, loss, step)

    monkeypatch.setattr(watched_step, "waiting_costs", lambda device: True)
    monkeypatch.setattr(GatedUpdate, "judge", counted)
    return judged


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_what_is_left_is_bitwise_what_waiting_leaves(small, gated, monkeypatch, name, clip):
    spoil = {3: "loss", 15: "gradient", 16: "loss", 20: "gradient"}
    model, history = fit(small, spoil, name, clip_grad_norm=clip)
    assert len(gated) >= 19  # the first makes the optimizer's state
    monkeypatch.setattr(watched_step, "waiting_costs", lambda device: False)
    plain, plain_history = fit(small, spoil, name, clip_grad_norm=clip, ckpt_path="other")
    assert history.equals(plain_history)
    state, plain_state = model.net.state_dict(), plain.net.state_dict()
    assert all(torch.equal(state[key], plain_state[key]) for key in state)
    for parameter, other in zip(model.net.parameters(), plain.net.parameters(), strict=True):
        for key, value in model.optimizer.state[parameter].items():
            assert torch.equal(value, plain.optimizer.state[other][key]), key
    steps = [(epoch, step) for epoch, step, _ in model.skipped_steps]
    assert steps == [(1, 3), (2, 5), (2, 6), (2, 10)]
    assert steps == [(epoch, step) for epoch, step, _ in plain.skipped_steps]
    assert "found_inf" not in vars(model.optimizer)


def test_steps_are_named(small, gated, capsys):
    model, _ = fit(small, {3: "loss", 15: "gradient"}, quiet=False)
    assert [reason for _, _, reason in model.skipped_steps] == [
        "the loss is NaN or infinite", "the gradient of 'norm.weight' is NaN or infinite",
    ]  # fmt: skip
    assert "step 3 of epoch 1 was left out, since the loss" in capsys.readouterr().out


def test_rewind_goes_back_when_the_step_is_noticed(small, gated, capsys):
    _, history = fit(small, {15: "gradient"}, on_non_finite="rewind", resume=True, quiet=False)
    assert list(history["epoch"]) == [1, 2]
    assert history["lr"].iloc[1] < history["lr"].iloc[0] * 0.6
    assert "back to the run in 'checkpoint.run' at epoch 2, step 10" in capsys.readouterr().out
    assert history.notna().all(axis=None)


def test_a_checkpoint_lists_what_was_left_out_before_it(small, gated):
    class CrashError(Exception):
        pass

    class Crash:
        def on_validation_epoch_end(self, model):
            raise CrashError

    options = {"resume": True, "save_every_steps": 4}
    with pytest.raises(CrashError):
        fit(small, {3: "loss"}, callbacks=[Crash()], **options)
    model, history = fit(small, {}, **options)
    assert [(epoch, step) for epoch, step, _ in model.skipped_steps] == [(1, 3)]
    assert history.notna().all(axis=None)


class Reads(TorchDispatchMode):
    """Lists the reads of a value, which an accelerator would make the host wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_of_the_device():
    torch.manual_seed(0)
    net = SpoiledNet({2: "gradient"}, gradient=math.inf)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    gate = GatedUpdate(net, optimizer)
    reads = Reads()
    for step in range(3):
        loss = net(torch.randn(20, 4)).sum()
        loss.backward()
        with reads:
            code = gate.judge(loss, step)
            with gate.holding(code):
                optimizer.step()
        optimizer.zero_grad()
    assert not reads.found
    assert gate.take() == [(1, "the gradient of 'norm.weight' is NaN or infinite")]
    assert gate.take() == []


def test_only_optimizers_with_state_and_a_kernel_for_it_are_gated():
    net = nn.Linear(2, 1)

    def stepped(make):
        optimizer = make(net.parameters())
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return optimizer

    assert can_gate(stepped(lambda p: torch.optim.Adam(p, fused=True)), CPU)
    assert can_gate(stepped(lambda p: torch.optim.SGD(p, momentum=0.9, fused=True)), CPU)
    assert not can_gate(torch.optim.Adam(net.parameters(), fused=True), CPU)  # no state yet
    assert not can_gate(torch.optim.SGD(net.parameters(), momentum=0.9, fused=True), CPU)
    assert can_gate(torch.optim.SGD(net.parameters(), fused=True), CPU)  # needs none
    assert not can_gate(stepped(torch.optim.Adam), CPU)
    assert not can_gate(stepped(torch.optim.RMSprop), CPU)
    mps = torch.device("mps")  # its kernels would write the NaN into the weights
    assert not can_gate(stepped(lambda p: torch.optim.Adam(p, fused=True)), mps)
