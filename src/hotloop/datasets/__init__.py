"""Small image data sets: Fashion-MNIST, MNIST, and handwritten digits that need no network."""

from __future__ import annotations

from hotloop.datasets.image_dataset import ImageDataset
from hotloop.datasets.mnist_family import fashion_mnist, mnist
from hotloop.datasets.splits import Splits
from hotloop.datasets.uci_digits import digits

__all__ = ["ImageDataset", "Splits", "digits", "fashion_mnist", "mnist"]
