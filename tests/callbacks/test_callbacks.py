"""The ready callbacks, with the real tools they write for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from torch import nn

from hotloop import KerasModel, VLog
from hotloop.callbacks.plotting import best_index, draw_history, save_history_plot
from hotloop.errors import MissingExtraError
from hotloop.kerascallbacks import (
    EpochCheckpoint,
    TensorBoardCallback,
    VisDisplay,
    VisMetric,
    VisProgress,
    WandbCallback,
)

HISTORY = {
    "epoch": [1, 2, 3, 4],
    "train_loss": [1.0, 0.5, 0.4, 0.3],
    "train_acc": [0.5, 0.6, 0.7, 0.8],
    "lr": [0.1] * 4,
    "val_loss": [1.1, 0.6, math.nan, 0.7],
    "val_acc": [0.4, 0.7, 0.6, 0.65],
}


def fit(small, callbacks, epochs=3):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    model.fit([small], [small], epochs=epochs, plot=False, quiet=True, cpu=True,
              callbacks=callbacks)  # fmt: skip
    return model


def test_best_index_leaves_nan_out():
    assert best_index(HISTORY["val_loss"], "min") == 1
    assert best_index([math.nan, 2.0, 2.0, 1.0], "max") == 1
    assert best_index([math.nan], "min") is None


def test_plot_marks_the_best_point():
    figure = draw_history(HISTORY, "val_acc", "max")
    score, loss = figure.axes
    assert score.get_title() == "best val_acc = 0.7000 (epoch 2)"
    assert [line.get_label() for line in score.lines[:2]] == ["train_acc", "val_acc"]
    assert score.lines[2].get_xdata()[0] == 2
    assert loss.get_title() == "loss"
    assert len(draw_history(HISTORY, "val_loss", "min").axes) == 1
    assert draw_history({}, "val_loss", "min").axes[0].get_title() == "best val_loss = ?"


def test_plot_is_written():
    for name in ("plot.png", "plot.svg"):
        save_history_plot(HISTORY, name, "val_acc", "max")
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("plot.svg").read_text()


def test_vis_metric_and_progress(small):
    fit(small, [VisMetric(save_path="curve.png"), VisProgress()])
    assert Path("curve.png").stat().st_size > 5000


def test_a_plot_is_told_of_once_it_is_there(small, capsys):
    class Fails:
        def on_train_epoch_end(self, model):
            raise KeyError("planted")

    fit(small, [VisMetric(save_path="curve.png")])
    assert capsys.readouterr().out == "the plot of val_loss is in curve.png\n"
    fit(small, [VisMetric(save_path="missing/curve.png")])
    assert "the plot of" not in capsys.readouterr().out
    with pytest.raises(KeyError, match="planted"):
        fit(small, [VisMetric(save_path="another.png"), Fails()])
    assert capsys.readouterr().out == ""
    assert not Path("another.png").exists()


def test_epoch_checkpoint_keeps_the_last(small):
    model = fit(small, [EpochCheckpoint("kept", save_freq=2, max_ckpt=2)], epochs=7)
    assert sorted(path.name for path in Path("kept").iterdir()) == [
        "checkpoint_epoch4.pt",
        "checkpoint_epoch6.pt",
    ]
    state = torch.load("kept/checkpoint_epoch6.pt", weights_only=True)
    assert state.keys() == model.net.state_dict().keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own protobuf
def test_tensorboard_events_hold_the_history(small):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = TensorBoardCallback("runs", "tiny", log_weight=True, log_weight_freq=2)
    model = fit(small, [callback])
    events = EventAccumulator(callback.log_path, {"histograms": 0}).Reload()
    assert {"loss/train", "loss/val", "lr"} <= set(events.Tags()["scalars"])
    written = [event.value for event in events.Scalars("loss/val")]
    assert written == pytest.approx(model.history["val_loss"], rel=1e-6)
    assert [event.step for event in events.Scalars("loss/val")] == [1, 2, 3]
    assert [event.step for event in events.Histograms("0.weight")] == [0, 2]
    assert Path(callback.log_path, "dfhistory.csv").exists()


def test_vis_display_shows_into_its_output(small):
    calls = []
    model = fit(small, [VisDisplay(calls.append, init_display=False, dis_period=2)], epochs=4)
    assert calls == [model, model]


def test_a_missing_package_is_named():
    try:
        import wandb  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"pip install 'hotloop\[wandb\]'"):
            WandbCallback(project="none")


def test_vlog_for_a_loop_of_ones_own(capsys):
    log = VLog(epochs=3, monitor_metric="val_loss", monitor_mode="min", save_path="log.png")
    log.log_start()
    for epoch in range(3):
        for step in range(5):
            log.log_step({"train_loss": 1.0 / (step + 1)})
        log.log_step({"val_loss": 0.5}, training=False)
        log.log_epoch({"train_loss": 0.4, "val_loss": 1.0 - epoch / 10})
    frame = log.log_end()
    assert frame["val_loss"].tolist() == [1.0, 0.9, 0.8]
    assert frame["epoch"].tolist() == [1, 2, 3]
    assert capsys.readouterr().out.count("best so far") == 3
    assert Path("log.png").exists()


def test_a_callback_ends_the_fit_after_its_epoch(small, capsys):
    class Stops:
        def on_train_epoch_end(self, model):
            model.stop_training = len(model.history["epoch"]) == 2

    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    for _ in range(2):  # it is asked anew in each fit
        history = model.fit([small], [small], epochs=5, plot=False, cpu=True, callbacks=[Stops()])
        assert len(history) == 2
        assert history["val_loss"].notna().all()
    assert "stopped: a callback set model.stop_training" in capsys.readouterr().out
