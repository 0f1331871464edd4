from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.augment import RandomFlip
from hotloop.reporting import describe_settings


def test_what_is_not_the_default_is_a_short_text():
    data = TensorDataset(torch.zeros(1200, 2))
    described = describe_settings(
        KerasModel.fit,
        {
            "train_data": DataLoader(data, 100),
            "val_data": (np.zeros((3, 2)), np.zeros(3)),
            "epochs": 10,
            "patience": 7,
            "callbacks": [],
            "batch_transform": RandomFlip(),
            "devices": [0, 1],
            "ckpt_path": Path("a") / "b.pt",
            "quiet": True,
        },
    )
    assert described == {
        "train_data": "DataLoader of length 12",
        "val_data": "tuple of length 2",
        "ckpt_path": str(Path("a") / "b.pt"),
        "patience": "7",
        "batch_transform": "RandomFlip",
        "devices": "0, 1",
    }


def test_functions_and_classes_have_their_names():
    def mix(images):
        return images

    described = describe_settings(KerasModel.fit, {"batch_transform": mix, "callbacks": [mix]})
    assert described == {"batch_transform": "mix", "callbacks": "mix"}


def test_a_fit_of_the_users_own_that_passes_arguments_on(small, tmp_path):
    class Mine(KerasModel):
        def fit(self, data, **options):
            return super().fit(data, **options)

    model = Mine(nn.Linear(4, 2), nn.CrossEntropyLoss())
    model.fit(small, epochs=1, batch_size=50, quiet=True, ckpt_path=tmp_path / "w")
    assert model.fit_settings["epochs"] == "1"
