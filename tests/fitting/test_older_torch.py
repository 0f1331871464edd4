"""What torch before 2.10 cannot do is said once, and left out."""

from __future__ import annotations

import pytest
import torch
from builders import MAKES_GRAPHS, make_mlp
from torch import nn

from hotloop import KerasModel


@pytest.mark.skipif(MAKES_GRAPHS, reason="this torch makes graphs")
def test_a_compiled_step_is_eager_and_the_reason_is_told(capsys, small, tmp_path):
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        net = make_mlp()
        model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
        history = model.fit(
            small, epochs=2, batch_size=50, compile=compile, plot=False, ckpt_path=tmp_path / "w"
        )
        histories.append(history)
    assert histories[0].equals(histories[1])
    assert capsys.readouterr().out.count("cannot refuse side effects while tracing, as 2.10") == 1
