"""Metrics for binary classification and segmentation, and the accumulation of epoch averages."""

from __future__ import annotations

from hotloop.metrics.binary import Accuracy, Precision, Recall
from hotloop.metrics.ranking import AUC, KS
from hotloop.metrics.segmentation import IOU

__all__ = ["AUC", "IOU", "KS", "Accuracy", "Precision", "Recall"]
