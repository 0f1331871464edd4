"""The names of ``torchkeras.kerasmodel``, for code that imports them from there."""

from hotloop.fitting.loop import EpochRunner
from hotloop.fitting.step import StepRunner
from hotloop.model import KerasModel

__all__ = ["EpochRunner", "KerasModel", "StepRunner"]
