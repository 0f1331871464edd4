"""Floating-point operations of a forward pass, counted while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_MAX_DEPTH = 3


def make_flop_counter() -> FlopCounterMode:
    """Return torch's counter, taught the kernels that it does not know.

    Without them an LSTM and, on a CPU, attention would count as nothing.
    """
    formulas = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention_flops,
        "mkldnn_rnn_layer": _mkldnn_recurrent_flops,
        "_cudnn_rnn": _recurrent_flops,
        "miopen_rnn": _recurrent_flops,
    }
    known = {name: count for name, count in formulas.items() if hasattr(torch.ops.aten, name)}
    mapping = {getattr(torch.ops.aten, name): count for name, count in known.items()}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def flop_table(model: nn.Module, counter: FlopCounterMode) -> str:
    """Return each module's operations as text, in the model's order, three levels deep."""
    counts = {str(name): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = counter.get_total_flops()
    root = type(model).__name__
    rows = [("Module", "FLOPs", "Share")]
    for path, _ in model.named_modules():
        name = f"{root}.{path}" if path else root
        if path.count(".") < _MAX_DEPTH and counts.get(name):
            rows.append((name, f"{counts[name]:,}", f"{counts[name] / total:.1%}"))
    rows.append(("Total", f"{total:,}", "100.0%" if total else "--"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _mkldnn_recurrent_flops(
    inputs: Sequence[int], weight: Sequence[int], hidden_weight: Sequence[int], *_: Any, **__: Any
) -> int:
    return _recurrent_flops(inputs, [weight, hidden_weight])


def _recurrent_flops(
    inputs: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any
) -> int:
    """Return 2 operations for each step, sample and weight of a matrix.

    Args:
        inputs: shape (steps, batch, features), or (rows, features) of a packed sequence.
        weights: shapes of all weights; biases, of one dimension, are left out as elsewhere.
    """
    matrices = sum(math.prod(shape) for shape in weights if len(shape) == 2)
    return 2 * math.prod(inputs[:-1]) * matrices
