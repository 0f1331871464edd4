"""Data sets of small grey images: two to download, one that ships with hotloop."""

from __future__ import annotations

from hotloop.datasets.digits import digits
from hotloop.datasets.idx_sets import fashion_mnist, mnist
from hotloop.datasets.images import ImageDataset, Splits

__all__ = ["ImageDataset", "Splits", "digits", "fashion_mnist", "mnist"]
