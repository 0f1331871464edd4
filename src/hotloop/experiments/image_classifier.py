"""The main job: a small convolutional net learns small grey images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from hotloop import datasets
from hotloop.checkpoint.run import RunFolder, refuse_where_locked
from hotloop.errors import SettingsError
from hotloop.fitting.resume.settings import run_folder_of
from hotloop.model import KerasModel

if TYPE_CHECKING:
    import pandas as pd

DATA_NAMES = ("fashion-mnist", "mnist", "digits")
FILES = HISTORY, CURVES, WEIGHTS, REPORT = (
    "history.csv",
    "curves.png",
    "weights.pt",
    "report.html",
)
SAVED_RUN = run_folder_of(WEIGHTS).name  # of a run that can be gone on with


def make_net(num_classes: int = 10) -> nn.Sequential:
    """Return the job's net: float32 (batch, 1, 28, 28) to logits float32 (batch, num_classes)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3),
        nn.MaxPool2d(kernel_size=2, stride=2),
        nn.Conv2d(32, 64, kernel_size=5),
        nn.MaxPool2d(kernel_size=2, stride=2),
        nn.Dropout2d(p=0.1),
        nn.AdaptiveMaxPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, num_classes),
    )


def load_data(name: str, root: str | Path | None = None) -> datasets.Splits:
    """Return training and validation images of one of ``DATA_NAMES``.

    Raises:
        SettingsError: another name.
        DatasetUnavailableError: the data is nowhere to be found.
    """
    if name == "fashion-mnist":
        return datasets.fashion_mnist(root)
    if name == "mnist":
        return datasets.mnist(root)
    if name == "digits":
        return datasets.digits(image_size=28)
    raise SettingsError(f"data={name!r} is not known: pass one of {', '.join(DATA_NAMES)}.")


def set_aside(run_folder: Path) -> None:
    """Move the checkpoints of an earlier run in ``run_folder`` away, so that none goes on with it.

    Raises:
        RunInUseError: it is being trained.
    """
    saved = run_folder / SAVED_RUN
    refuse_where_locked(saved)
    RunFolder(saved).set_aside()


def make_model(lr: float = 0.01) -> KerasModel:
    """Return the job's model: cross entropy, accuracy, Adam."""
    from torchmetrics import Accuracy

    net = make_net()
    return KerasModel(
        net,
        loss_fn=nn.CrossEntropyLoss(),
        metrics_dict={"acc": Accuracy(task="multiclass", num_classes=10)},
        optimizer=torch.optim.Adam(net.parameters(), lr=lr),
    )


def train(
    splits: datasets.Splits,
    run_folder: Path,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 0.01,
    patience: int = 3,
    num_workers: int = 2,
    seed: int = 42,
    **fit_options: Any,
) -> pd.DataFrame:
    """Train on ``splits``; write weights.pt, history.csv, curves.png and report.html.

    Args:
        splits: training and validation images.
        run_folder: where they go; made where it is missing.
        epochs: the most epochs.
        batch_size: samples a batch.
        lr: Adam's learning rate.
        patience: epochs without a better val_acc before it stops.
        num_workers: loader processes for each data set.
        seed: of torch's random numbers: weights, order and dropout.
        **fit_options: passed on to ``KerasModel.fit``.

    Returns:
        The history.
    """
    from hotloop.callbacks.plotting import save_history_plot

    torch.manual_seed(seed)
    run_folder.mkdir(parents=True, exist_ok=True)
    keep: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    model = make_model(lr)
    history = model.fit(
        train_data=DataLoader(splits.train, batch_size=batch_size, shuffle=True, **keep),
        val_data=DataLoader(splits.val, batch_size=batch_size, **keep),
        epochs=epochs,
        patience=patience,
        monitor="val_acc",
        mode="max",
        ckpt_path=run_folder / WEIGHTS,
        **{"plot": False, **fit_options},
    )
    history.to_csv(run_folder / HISTORY, index=False)
    if len(history):
        columns = {str(name): history[name].tolist() for name in history}
        save_history_plot(columns, run_folder / CURVES, monitor="val_acc", mode="max")
        model.report(run_folder / REPORT, title="A small convolutional net on real images")
    return history
