"""Which learning rate to begin with: a short sweep on a copy of the model."""

from __future__ import annotations

from hotloop.learning_rate.curve import LearningRateCurve
from hotloop.learning_rate.sweep import find_learning_rate

__all__ = ["LearningRateCurve", "find_learning_rate"]
