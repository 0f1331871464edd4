"""Operators of a traced step, replaced by ones that CUDA computes faster, before Inductor compiles.

Each computes the same, and rounds otherwise. ``REWRITES`` are tried in this order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hotloop.fitting.graph.rewrites.input_gradients import rewrite_input_gradients
from hotloop.fitting.graph.rewrites.small_products import rewrite_small_products
from hotloop.fitting.graph.rewrites.weight_gradients import rewrite_weight_gradients

REWRITES: dict[str, Callable[[torch.fx.GraphModule], int]] = {
    "input gradients": rewrite_input_gradients,
    "weight gradients": rewrite_weight_gradients,
    "small products": rewrite_small_products,
}
