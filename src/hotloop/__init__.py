"""Train PyTorch models in five lines, at the speed of a loop tuned by hand.

The public names are those of ``__all__``; they are imported when first used, so that
``import hotloop`` costs little more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch as _torch  # noqa: F401 - hotloop is nothing without it: fail here when it is missing

from hotloop.version import __version__ as __version__

_HOMES = {
    "Accelerator": "hotloop.fitting.accelerator",
    "AveragedWeights": "hotloop.callbacks.averaged_weights",
    "Callback": "hotloop.callbacks.base",
    "EarlyStopping": "hotloop.fitting.early_stopping",
    "EpochRunner": "hotloop.fitting.loop",
    "HotloopError": "hotloop.errors",
    "KerasModel": "hotloop.model",
    "LossLog": "hotloop.metrics.accumulate",
    "StepOutput": "hotloop.fitting.forward",
    "StepRunner": "hotloop.fitting.step",
    "VLog": "hotloop.vlog",
    "choose_device": "hotloop.hardware",
    "colorful": "hotloop.utils",
    "delete_object": "hotloop.utils",
    "devices": "hotloop.hardware",
    "explain_devices": "hotloop.placement",
    "flop_summary": "hotloop.inspection.summary",
    "free_memory": "hotloop.memory",
    "load_weights": "hotloop.checkpoint.weights",
    "peak_memory": "hotloop.memory",
    "placements": "hotloop.placement",
    "printlog": "hotloop.utils",
    "save_weights": "hotloop.checkpoint.weights",
    "seed_everything": "hotloop.reproducibility",
    "summary": "hotloop.inspection.summary",
    "to_device": "hotloop.data.on_device",
}
_MODULES = ("augment", "datasets", "errors", "kerascallbacks", "metrics", "utils")
_UNLISTED = ("estimators", "kerasmodel", "vlog")  # one needs an extra; modules of torchkeras
_WRAP = "KerasModel(net, loss_fn, metrics_dict, optimizer) takes the plain net"
# names of torchkeras, now and earlier, that hotloop does not have
_ELSEWHERE = {
    "Model": _WRAP,
    "LightModel": _WRAP,
    "HugModel": f"{_WRAP}; batches may be dicts, and the net may return its loss (loss_fn=None)",
    "hugmodel": f"{_WRAP}; batches may be dicts, and the net may return its loss (loss_fn=None)",
    "pbar": "fit shows its own bar; VLog shows that of a loop of yours",
    "plots": "fit(plot=True) draws the curves; the rest of the module stays torchkeras'",
    "tools": "VLog plots the curves of a loop of yours; the rest of the module stays torchkeras'",
} | dict.fromkeys(("chat", "eda", "email", "soup", "stacker", "tabular", "vision"), "")

__all__ = [*_HOMES, *_MODULES]

if TYPE_CHECKING:
    from hotloop.callbacks.averaged_weights import AveragedWeights as AveragedWeights
    from hotloop.callbacks.base import Callback as Callback
    from hotloop.checkpoint.weights import load_weights as load_weights
    from hotloop.checkpoint.weights import save_weights as save_weights
    from hotloop.data.on_device import to_device as to_device
    from hotloop.errors import HotloopError as HotloopError
    from hotloop.fitting.accelerator import Accelerator as Accelerator
    from hotloop.fitting.early_stopping import EarlyStopping as EarlyStopping
    from hotloop.fitting.forward import StepOutput as StepOutput
    from hotloop.fitting.loop import EpochRunner as EpochRunner
    from hotloop.fitting.step import StepRunner as StepRunner
    from hotloop.hardware import choose_device as choose_device
    from hotloop.hardware import devices as devices
    from hotloop.inspection.summary import flop_summary as flop_summary
    from hotloop.inspection.summary import summary as summary
    from hotloop.memory import free_memory as free_memory
    from hotloop.memory import peak_memory as peak_memory
    from hotloop.metrics.accumulate import LossLog as LossLog
    from hotloop.model import KerasModel as KerasModel
    from hotloop.placement import explain_devices as explain_devices
    from hotloop.placement import placements as placements
    from hotloop.reproducibility import seed_everything as seed_everything
    from hotloop.utils import colorful as colorful
    from hotloop.utils import delete_object as delete_object
    from hotloop.utils import printlog as printlog
    from hotloop.vlog import VLog as VLog


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in (*_MODULES, *_UNLISTED):
        return importlib.import_module(f"hotloop.{name}")
    if name in _ELSEWHERE:
        # an ImportError, for "from hotloop import name" says nothing of an AttributeError's text
        mend = _ELSEWHERE[name] or f"keep torchkeras installed for torchkeras.{name}"
        raise ImportError(f"hotloop has no '{name}', which torchkeras has: {mend}.", name=name)
    raise AttributeError(f"module 'hotloop' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
