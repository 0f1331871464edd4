"""Ready transforms for ``fit(batch_transform=...)``."""

from hotloop.data.augment import Compose, Cutout, Normalize, RandomCrop, RandomFlip

__all__ = ["Compose", "Cutout", "Normalize", "RandomCrop", "RandomFlip"]
