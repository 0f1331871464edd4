"""Mistakes that the doctor sees by looking at a net, at a loader, at a watched step."""

from __future__ import annotations

import planted_doctor as planted
import torch
from torch import nn

from hotloop.data.workers import usable_cores
from hotloop.doctor.mistakes import mistakes_of_loader, mistakes_of_net, mistakes_of_step
from hotloop.doctor.watch import watch_step

META = torch.device("meta")
CPU = torch.device("cpu")


class WithPlainTensor(nn.Module):
    """Scales by a tensor that ``.to`` does not move."""

    def __init__(self, registered=False):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        if registered:
            self.register_buffer("scale", torch.ones(2))
        else:
            self.scale = torch.ones(2)


def test_plain_tensors_stay_on_the_host():
    net = nn.Sequential(nn.ReLU(), WithPlainTensor())
    (mistake,) = mistakes_of_net(net, META)
    assert mistake.kind == "cpu_tensor"
    assert "1.scale" in mistake.text
    assert "register_buffer" in mistake.mend
    (mistake,) = mistakes_of_net(WithPlainTensor(), META)
    assert "WithPlainTensor.scale" in mistake.text
    assert mistakes_of_net(net, CPU) == []  # there it is where it belongs
    assert mistakes_of_net(WithPlainTensor(registered=True), META) == []


def test_tensors_of_the_host_in_a_step_on_a_device():
    model = planted.make_model()
    inputs = torch.zeros(3, planted.IN, device=META)

    def on_device():
        inputs + inputs

    def copies_anew():
        inputs + torch.ones(3, planted.IN).to(META)

    assert mistakes_of_step(watch_step(on_device, META), model, META) == []
    (mistake,) = mistakes_of_step(watch_step(copies_anew, META), model, META)
    assert mistake.kind == "cpu_tensor"
    assert "test_mistakes.py" in mistake.text
    assert "copies_anew mixes tensors of the host" in mistake.text
    # on a CPU all tensors are the host's
    assert mistakes_of_step(watch_step(copies_anew, CPU), model, CPU) == []


def kinds_of(loader, epochs=3, startup_share=0.2):
    return [mistake.kind for mistake in mistakes_of_loader(loader, epochs, startup_share)]


def test_workers_that_are_started_anew():
    loader = planted.make_loader(num_workers=1)
    (mistake,) = mistakes_of_loader(loader, 3, 0.2)
    assert mistake.kind == "workers_restarted"
    assert "starting 1 workers anew takes 20% of each epoch" in mistake.text
    assert "persistent_workers=True" in mistake.mend
    assert kinds_of(loader, epochs=1) == []
    assert kinds_of(loader, startup_share=0.01) == []
    assert kinds_of(planted.make_loader(num_workers=1, persistent_workers=True)) == []
    assert kinds_of(planted.make_loader()) == []


def test_more_workers_than_cores():
    most = usable_cores()
    kept = {"persistent_workers": True}
    assert kinds_of(planted.make_loader(num_workers=most, **kept)) == []


def test_too_many_workers_restarted_are_two_mistakes(recwarn):
    loader = planted.make_loader(num_workers=usable_cores() + 1)
    assert kinds_of(loader) == ["workers_above_cores", "workers_restarted"]
