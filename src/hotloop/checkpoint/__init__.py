"""Weights on disk: atomic files, the best weights of a run, and reading them back."""

from __future__ import annotations

from hotloop.checkpoint.best import BestWeights
from hotloop.checkpoint.files import check_writable, write_atomically
from hotloop.checkpoint.weights import load_weights, read_weights, save_weights

__all__ = [
    "BestWeights",
    "check_writable",
    "load_weights",
    "read_weights",
    "save_weights",
    "write_atomically",
]
