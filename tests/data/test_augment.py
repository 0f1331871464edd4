"""Augmentation on whole batches."""

from __future__ import annotations

import pytest
import torch
from builders import make_conv_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.augment import Compose, Cutout, Normalize, RandomCrop, RandomFlip
from hotloop.data.augment import make_transform
from hotloop.errors import DataError, SettingsError


def test_flip_mirrors_some_images():
    images = torch.rand(200, 3, 5, 7)
    flipped = RandomFlip()(images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored | same).all()
    assert 50 < int(mirrored.sum()) < 150


def test_crop_is_a_window_of_the_padded_image():
    images = torch.rand(50, 2, 6, 5)
    cropped = RandomCrop(2)(images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    windows = padded.unfold(2, 6, 1).unfold(3, 5, 1)  # (batch, channels, 5, 5, 6, 5)
    assert cropped.shape == images.shape
    for image, places in zip(cropped, windows, strict=True):
        assert any(torch.equal(image, places[:, i, j]) for i in range(5) for j in range(5))


def test_cutout_clears_a_square():
    images = torch.ones(100, 1, 12, 12)
    cleared = (Cutout(4)(images) == 0).flatten(1).sum(1)
    assert int(cleared.max()) == 16
    assert int(cleared.min()) >= 4  # cut off at a corner


def test_normalize_is_torchvisions_formula():
    images = torch.rand(4, 2, 3, 3)
    mean, std = [0.5, 0.1], [0.2, 0.3]
    expected = torch.stack([(images[:, i] - mean[i]) / std[i] for i in range(2)], dim=1)
    torch.testing.assert_close(Normalize(mean, std)(images), expected)


def test_transforms_of_inputs_or_of_both():
    batch = [torch.ones(4, 1, 2, 2), torch.arange(4)]
    doubled = make_transform(lambda inputs: inputs * 2)(batch)
    assert torch.equal(doubled[0], batch[0] * 2)
    assert doubled[1] is batch[1]
    swapped = make_transform(lambda inputs, labels: (inputs, labels.flip(0)))(batch)
    assert swapped[1].tolist() == [3, 2, 1, 0]
    module = make_transform(nn.Identity())
    assert torch.equal(module(batch)[0], batch[0])
    with pytest.raises(SettingsError, match="requires 3 arguments"):
        make_transform(lambda a, b, c: None)


class Mixes(nn.Module):
    """Of the form of torchvision's MixUp: takes any number of arguments, and needs the labels."""

    def forward(self, *inputs):
        if len(inputs) < 2:
            raise ValueError("labels are missing")
        return inputs[0] * 2, inputs[1] + 1


def test_a_transform_that_takes_any_number_of_arguments():
    batch = [torch.ones(4, 1, 2, 2), torch.arange(4)]
    with pytest.raises(DataError, match="=Mixes was given the inputs alone, and refused them"):
        make_transform(Mixes())(batch)
    mixes = Mixes()
    assert make_transform(lambda *args: args[0] * 3)(batch)[0].max() == 3
    mixes.data_keys = ["input", "class"]  # as kornia's
    assert make_transform(mixes)(batch)[1].tolist() == [1, 2, 3, 4]


def test_fit_augments_training_batches_only(images):
    seen = {"train": [], "val": []}

    class Watching(nn.Sequential):
        def forward(self, inputs):
            seen["train" if self.training else "val"].append(inputs.detach().mean().item())
            return super().forward(inputs)

    net = Watching(*make_conv_net())
    data = DataLoader(TensorDataset(images[0][:64], images[1][:64]), batch_size=64)
    KerasModel(net, nn.CrossEntropyLoss()).fit(
        data,
        data,
        epochs=2,
        plot=False,
        quiet=True,
        cpu=True,
        batch_transform=Compose(RandomFlip(), Cutout(8), lambda inputs: inputs + 5),
    )
    assert min(seen["train"]) > 4
    assert max(seen["val"]) < 2
