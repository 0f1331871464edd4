"""``find_lr`` on an accelerator: the copy goes there, the model stays; losses are a CPU's."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]


@pytest.mark.parametrize("compile", [False, True])
def test_the_curve_is_that_of_a_cpu(compile):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(640, 4, generator=generator)
    labels = (inputs[:, 0] > inputs[:, 1]).long()
    data = DataLoader(TensorDataset(inputs, labels), batch_size=32)
    options = dict(min_lr=1e-3, max_lr=0.3, num_steps=45, quiet=True)
    losses = []
    for cpu in (True, False):
        torch.manual_seed(0)
        net = make_mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        losses.append(model.find_lr(data, cpu=cpu, compile=compile and not cpu, **options).losses)
        assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
