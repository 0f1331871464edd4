"""The names of ``torchkeras.kerascallbacks``, and MLflow."""

from hotloop.callbacks.epoch_checkpoint import EpochCheckpoint
from hotloop.callbacks.mlflow import MLflowCallback
from hotloop.callbacks.tensorboard import TensorBoardCallback
from hotloop.callbacks.vis_display import VisDisplay
from hotloop.callbacks.vis_metric import VisMetric
from hotloop.callbacks.vis_progress import VisProgress
from hotloop.callbacks.wandb import WandbCallback

__all__ = [
    "EpochCheckpoint",
    "MLflowCallback",
    "TensorBoardCallback",
    "VisDisplay",
    "VisMetric",
    "VisProgress",
    "WandbCallback",
]
