"""A step's operations are counted without computing it, and stand in the line of a long fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hotloop import KerasModel
from hotloop.doctor.watch import watch_step
from hotloop.fitting import peak
from hotloop.fitting.peak import StepShape, count_step_flops

LOSS = nn.CrossEntropyLoss()


class Convolutions(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(),
                         nn.Linear(4 * 36, 2))  # fmt: skip


class Attention(nn.Module):
    """Keeps what it saw, as users' nets do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.seen = None

    def forward(self, ids):
        self.seen = self.layer(self.embedding(ids))
        return self.head(self.seen.mean(1))


class LooksAtValues(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs if inputs.sum() > 0 else -inputs)


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (Convolutions(), torch.randn(6, 3, 8, 8)),
        (Attention(), torch.randint(10, (6, 5))),
    ],
)
def test_counts_are_those_of_a_real_step_and_nothing_is_touched(net, inputs):
    labels = torch.randint(2, (6,))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    counted = count_step_flops(net, LOSS, StepShape((inputs, labels)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert getattr(net, "seen", None) is None
    facts = watch_step(lambda: LOSS(net(inputs), labels).backward(), torch.device("cpu"))
    assert counted == facts.flops > 0


def test_a_step_that_depends_on_values_is_not_counted():
    shape = StepShape((torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)))
    assert count_step_flops(LooksAtValues(3, 2), LOSS, shape) == 0


def fit(net, kind=KerasModel):
    model = kind(net, LOSS, None, torch.optim.SGD(net.parameters(), 0.1))
    data = (torch.randn(64, 20), torch.randint(2, (64,)))
    model.fit(data, batch_size=16, epochs=2, cpu=True, plot=False)
    return model


def test_the_line_of_a_long_fit_has_the_share_of_the_peak(capsys, monkeypatch):
    fit(nn.Linear(20, 2))
    assert "peak" not in capsys.readouterr().out  # a short fit is not held up
    monkeypatch.setattr(peak, "LONG_RUN_SECONDS", 0.0)
    model = fit(nn.Linear(20, 2))
    assert "of this device's measured fp32 peak" in capsys.readouterr().out
    # a product of 16 x 20 x 2 forward, one for the weights backward
    assert model.measured_peak.step_flops == 2 * 2 * 16 * 20 * 2

    class OwnStep(KerasModel):
        def step(self, batch):
            return self.loss_fn(self.net(batch[0]), batch[1])

    assert fit(nn.Linear(20, 2), OwnStep).measured_peak is None
