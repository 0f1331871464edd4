"""What metrics have added up so far: read, and put back in place."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hotloop.checkpoint.run.tree import NotPlainError, encode

_OWN_OF_MODULE = frozenset(vars(nn.Module()))


def snapshot_of(value: Any) -> Any:
    """Return a copy of tensors, arrays and containers, which nobody changes in place."""
    return _mapped(value, lambda tensor: tensor.detach().clone())


def read_metrics(metrics: nn.Module) -> dict[str, Any]:
    """Return what the metrics have added up so far, by module name.

    torchmetrics' declared states; of other metrics their buffers, and the attributes that are
    plain values or tensors.
    """
    return {name: _read_metric(module) for name, module in _metric_modules(metrics)}


def write_metrics(metrics: nn.Module, state: dict[str, Any], device: torch.device) -> None:
    """Put the metrics back to where they were."""
    for name, module in _metric_modules(metrics):
        saved = state.get(name, {})
        for attribute, value in saved.get("attributes", {}).items():
            own = vars(module).get(attribute)
            setattr(module, attribute, _merged(own, _on(value, device)))
        for buffer, value in saved.get("buffers", {}).items():
            getattr(module, buffer).copy_(value)


def _metric_modules(metrics: nn.Module) -> Iterator[tuple[str, Any]]:
    if hasattr(metrics, "compute") and callable(getattr(metrics, "items", None)):
        # a MetricCollection: its groups share their states, which this makes all of them have
        list(metrics.items(keep_base=True, copy_state=False))  # type: ignore[operator]
    for name, module in metrics.named_modules():
        if type(module) is not nn.ModuleDict and not _is_collection(module):
            yield name, module


def _is_collection(module: Any) -> bool:
    return isinstance(module, nn.ModuleDict)


def _read_metric(module: Any) -> dict[str, Any]:
    torchmetrics: Any = sys.modules.get("torchmetrics")
    if torchmetrics is not None and isinstance(module, torchmetrics.Metric):
        names = [*module._defaults, "_update_count"]
        return {"attributes": {name: snapshot_of(getattr(module, name)) for name in names}}
    attributes = {}
    for name, value in vars(module).items():
        if name in _OWN_OF_MODULE or callable(value):
            continue
        try:
            encode(value)
        except NotPlainError:
            continue
        attributes[name] = snapshot_of(value)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}
    return {"attributes": attributes, "buffers": buffers}


def _on(value: Any, device: torch.device) -> Any:
    return _mapped(value, lambda tensor: tensor.to(device))


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a value whose containers are new, with each of its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        kind = Counter if isinstance(value, Counter) else dict
        return kind({key: _mapped(part, change) for key, part in value.items()})
    if type(value) is deque:
        return deque((_mapped(part, change) for part in value), value.maxlen)
    if isinstance(value, list):
        return [_mapped(part, change) for part in value]
    if type(value) in (tuple, set, frozenset):
        return type(value)(_mapped(part, change) for part in value)
    return value


def _merged(own: Any, saved: Any) -> Any:
    """Return what was saved: in the dict or deque that is there, which knows its default or length.

    Files keep no functions, such as a ``defaultdict`` has.
    """
    if isinstance(own, deque) and isinstance(saved, deque):
        own.clear()
        own.extend(saved)
        return own
    if isinstance(own, dict) and isinstance(saved, dict):
        own.clear()
        for key, part in saved.items():
            holds_more = isinstance(own, defaultdict) and isinstance(part, (dict, deque))
            own[key] = _merged(own[key], part) if holds_more else part
        return own
    return saved
