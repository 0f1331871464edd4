"""A function of its own, compiled."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hotloop.fitting.graph.rewrites.inlining import compile_alone
from hotloop.fitting.graph.rewrites.small_products import product


# Inductor imports torch.jit's old classes; fits leave its warnings out
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_a_compiled_function_gives_its_numbers():
    tensors = [torch.randn(20, 10).t(), torch.randn(20, 3)]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]
    call = compile_alone(product, fakes)
    for _ in range(2):
        torch.testing.assert_close(call(*tensors), torch.mm(*tensors))
