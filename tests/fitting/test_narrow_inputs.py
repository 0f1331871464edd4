"""Full batches of few columns: another layout, the same numbers, and changes are seen."""

from __future__ import annotations

import pytest
import torch
from builders import needs_graphs
from torch import nn

from hotloop import KerasModel
from hotloop.fitting.narrow_inputs import NarrowInputs

CPU = torch.device("cpu")
ROWS = 20_000


class Watched(nn.Sequential):
    """Notes how its inputs lie in memory."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.strides = []

    def forward(self, inputs):
        self.strides.append(inputs.stride())
        return super().forward(inputs)


def make_batch(columns=2):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64)
    return [inputs, inputs.sum(1, keepdim=True) + 1]


def fit(batches, kind=Watched, **options):
    torch.manual_seed(0)
    net = kind(nn.Linear(2, 1)).double()
    model = KerasModel(net, nn.MSELoss(), optimizer=torch.optim.Adam(net.parameters(), lr=0.1))
    history = model.fit(batches, **{"epochs": 2, "plot": False, "quiet": True, **options})
    return net, history


def test_a_batch_that_comes_again_lies_column_by_column_with_the_same_numbers():
    batch = make_batch()
    plain, plain_history = fit([batch] * 4, exact=True)
    net, history = fit([batch] * 4)
    assert set(plain.strides) == {(2, 1)}
    # the second batch is the first that came again; a trial on a copy of the net went before
    assert net.strides == [(2, 1)] + [(1, ROWS)] * 7
    torch.testing.assert_close(net[0].weight, plain[0].weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.tensor(history["train_loss"]), torch.tensor(plain_history["train_loss"]), rtol=1e-9,
        atol=0,
    )  # fmt: skip


def test_values_that_change_unseen_by_torch_are_seen():
    class Refilled:
        def __len__(self):
            return 6

        def __iter__(self):
            batch = make_batch()
            memory = batch[0].numpy()  # what is written here, no version counter notes
            for step in range(6):
                yield batch
                if step >= 2:
                    memory[:] = memory[::-1].copy() * 0.9

    plain, _ = fit(Refilled(), exact=True)
    net, _ = fit(Refilled())
    assert (1, ROWS) in net.strides
    assert net.strides[-1] == (2, 1)
    torch.testing.assert_close(net[0].weight, plain[0].weight, rtol=1e-9, atol=1e-12)


class Views(nn.Sequential):
    """Needs rows that lie one after the other."""

    def forward(self, inputs):
        return super().forward(inputs.view(-1).view(-1, 2))


def test_a_net_that_needs_rows_keeps_them():
    _, history = fit([make_batch()] * 3, Views)
    assert len(history) == 2


def test_the_trial_leaves_random_numbers_and_gradients_alone():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1)).double()
    narrow = NarrowInputs(net, CPU, budget=1 << 30)
    batch = make_batch()
    before = torch.get_rng_state()
    for _ in range(2):
        prepared = narrow.prepare(batch, lambda n, b: nn.functional.mse_loss(n(b[0]), b[1]))
    assert narrow.decided
    assert prepared[0].stride() == (1, ROWS)
    assert torch.equal(prepared[0], batch[0])
    assert torch.equal(before, torch.get_rng_state())
    assert net[0].weight.grad is None


@pytest.mark.parametrize(
    "case", ["other batches", "wide layer", "short", "over budget", "other device", "dict"]
)
def test_what_does_not_qualify_is_left_alone(case):
    layers = [nn.Linear(2, 64 if case == "wide layer" else 1)]
    device = torch.device("meta") if case == "other device" else CPU
    budget = 1000 if case == "over budget" else 1 << 30
    narrow = NarrowInputs(nn.Sequential(*layers), device, budget)
    if case in ("wide layer", "other device"):
        assert not narrow.applies
        return
    assert narrow.applies
    batch = make_batch()
    for _ in range(3):
        if case == "other batches":
            batch = make_batch()
        if case == "short":
            batch = [part[:100] for part in batch]
        given = {"inputs": batch[0], "labels": batch[1]} if case == "dict" else batch
        assert narrow.prepare(given, lambda n, b: n(b[0]).sum()) is given
    assert narrow.decided


def test_a_run_that_goes_on_uses_the_layout_at_once():
    net = nn.Linear(2, 1).double()
    batch, loss = make_batch(), lambda n, b: n(b[0]).sum()
    first = NarrowInputs(net, CPU, budget=1 << 30)
    for _ in range(2):
        first.prepare(batch, loss)
    second = NarrowInputs(net, CPU, budget=1 << 30)
    second.load_state_dict(first.state_dict())
    assert second.prepare(batch, loss)[0].stride() == (1, ROWS)


@needs_graphs
def test_one_graph_serves_the_layout(capsys):
    batch = make_batch()
    plain, _ = fit([batch] * 30, exact=True)
    capsys.readouterr()
    net, _ = fit([batch] * 30, nn.Sequential, compile=True, quiet=False)
    said = capsys.readouterr().out
    assert "is one graph" in said
    assert "eagerly" not in said
    torch.testing.assert_close(net[0].weight, plain[0].weight, rtol=1e-6, atol=1e-9)
