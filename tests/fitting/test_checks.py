"""What cannot work is refused before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hotloop.errors import OptimizerError
from hotloop.fitting.checks import check_scaled_updates


def test_a_fused_optimizer_of_scaled_gradients_is_refused_on_mps():
    parameters, scaler = list(nn.Linear(2, 2).parameters()), torch.amp.GradScaler("cpu")
    fused = torch.optim.AdamW(parameters, fused=True)
    mps = torch.device("mps")
    with pytest.raises(
        OptimizerError, match=r"AdamW\(fused=True\) does not unscale .* leave fused"
    ):
        check_scaled_updates(fused, scaler, mps)
    check_scaled_updates(fused, None, mps)
    check_scaled_updates(fused, scaler, torch.device("cpu"))
    check_scaled_updates(torch.optim.AdamW(parameters), scaler, mps)
