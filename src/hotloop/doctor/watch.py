"""One training step watched: what it reads back, what it prints, what it moves."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hotloop.inspection.flops import make_flop_counter

HOTLOOP, TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
_METRIC_FUNCTIONS = ("update_metrics", "compute_metrics")


@dataclass
class StepFacts:
    """What one training step did.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention.
        num_bytes: that its operators read and wrote, each on its own.
        syncs: values read back to the host, by the user's line ("train.py:12 in step").
        metric_syncs: the same for code that metrics ran.
        printed: characters written to stdout.
        host_tensors: user's lines that gave operators tensors of the host and of the device.
    """

    flops: int = 0
    num_bytes: int = 0
    syncs: dict[str, int] = field(default_factory=dict)
    metric_syncs: dict[str, int] = field(default_factory=dict)
    printed: int = 0
    host_tensors: dict[str, int] = field(default_factory=dict)


def watch_step(step: Any, device: torch.device) -> StepFacts:
    """Call ``step()``, which runs one training step, and return what it did."""
    facts, counter, printed = StepFacts(), make_flop_counter(), io.StringIO()
    with contextlib.redirect_stdout(printed), counter, _Watch(facts, device):
        step()
    facts.flops, facts.printed = int(counter.get_total_flops()), len(printed.getvalue())
    return facts


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, facts: StepFacts, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._facts, self._device = facts, device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self._note_sync()
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            tensors = [*_tensors(args), *_tensors(tuple((kwargs or {}).values()))]
            self._facts.num_bytes += sum(t.numel() * t.element_size() for t in tensors)
            self._facts.num_bytes += sum(t.numel() * t.element_size() for t in _tensors(result))
            if self._device.type != "cpu":
                self._note_mixed(name, tensors)
        return result

    def _note_sync(self) -> None:
        frame, in_metric = user_frame()
        if frame is not None:
            found = self._facts.metric_syncs if in_metric else self._facts.syncs
            found[frame] = found.get(frame, 0) + 1

    def _note_mixed(self, name: str, tensors: list[torch.Tensor]) -> None:
        places = {tensor.device.type for tensor in tensors if tensor.dim()}
        if "cpu" in places and (len(places) > 1 or name in ("_to_copy", "copy_")):
            frame, _ = user_frame()
            if frame is not None:
                self._facts.host_tensors[frame] = self._facts.host_tensors.get(frame, 0) + 1


def user_frame() -> tuple[str | None, bool]:
    """Return the innermost line that is neither torch's nor hotloop's, and if a metric ran it.

    None where hotloop's own code is nearer: what it reads it reads where that waits for nothing.
    """
    in_metric, found = False, None
    frames = list(traceback.walk_stack(sys._getframe(2)))
    for frame, line in frames:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(HOTLOOP):
            in_metric = in_metric or frame.f_code.co_name in _METRIC_FUNCTIONS
            if found is None and path.parent.name != "doctor":
                return None, in_metric
        elif found is None and not path.is_relative_to(TORCH) and path.exists():
            found = f"{path.name}:{line} in {frame.f_code.co_name}"
    return found, in_metric


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in _tensors(value)]
    return []
