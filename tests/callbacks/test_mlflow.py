"""MLflow without its server: runs in a folder."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.kerascallbacks import MLflowCallback

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def tracked(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()


def fit(small, tmp_path, *callbacks, **options):
    torch.manual_seed(0)
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    settings = {"epochs": 3, "batch_size": 50, "quiet": True, "ckpt_path": tmp_path / "best.pt"}
    model.fit(small, small, callbacks=list(callbacks), **settings | options)
    return model


def test_a_run_has_settings_history_and_weights(small, tmp_path):
    callback = MLflowCallback(experiment="tests", name="first", params={"seed": 0})
    model = fit(small, tmp_path, callback, clip_grad_norm=1.0)
    run = mlflow.get_run(callback.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert mlflow.get_experiment(run.info.experiment_id).name == "tests"
    assert run.data.params["clip_grad_norm"] == "1.0"
    assert run.data.params["seed"] == "0"
    logged = mlflow.MlflowClient().get_metric_history(callback.run_id, "val_loss")
    assert [(metric.step, metric.value) for metric in logged] == list(
        zip(model.history["epoch"], model.history["val_loss"], strict=True)
    )
    folder = mlflow.artifacts.download_artifacts(run_id=callback.run_id, dst_path=str(tmp_path))
    weights = torch.load(f"{folder}/checkpoint/best.pt")
    assert torch.equal(weights["0.weight"], model.net[0].weight)
    with open(f"{folder}/history.csv") as file:
        assert file.readline() == "epoch,train_loss,lr,val_loss\n"
    assert mlflow.active_run() is None


def test_an_active_run_is_gone_on_with_and_left_open(small, tmp_path):
    with mlflow.start_run() as active:
        callback = MLflowCallback()
        fit(small, tmp_path, callback)
        assert callback.run_id == active.info.run_id
        assert mlflow.active_run() is not None


class Fails:
    def on_validation_epoch_end(self, model):
        if len(model.history["epoch"]) == 2:
            raise OSError("mine")


def test_a_fit_that_fails_ends_its_run_and_a_resumed_one_goes_on_with_it(small, tmp_path):
    first = MLflowCallback()
    with pytest.raises(OSError, match="mine"):
        fit(small, tmp_path, first, Fails(), resume=True)
    assert mlflow.get_run(first.run_id).info.status == "FAILED"
    assert mlflow.active_run() is None
    second = MLflowCallback()
    fit(small, tmp_path, second, resume=True)
    assert second.run_id == first.run_id
    assert mlflow.get_run(second.run_id).info.status == "FINISHED"
    logged = mlflow.MlflowClient().get_metric_history(second.run_id, "val_loss")
    assert sorted({metric.step for metric in logged}) == [1, 2, 3]


def test_each_fit_has_a_run_of_its_own(small, tmp_path):
    callback, ids = MLflowCallback(save_ckpt=False), set()
    for _ in range(2):
        fit(small, tmp_path, callback)
        ids.add(callback.run_id)
        found = mlflow.artifacts.list_artifacts(run_id=callback.run_id)
        assert [artifact.path for artifact in found] == ["history.csv"]
    assert len(ids) == 2


def test_two_fits_in_one_active_run(small, tmp_path):
    """As of folds, or of training and fine-tuning."""
    with mlflow.start_run() as active:
        for epochs in (1, 2):
            fit(small, tmp_path, MLflowCallback(), epochs=epochs)
        run = mlflow.get_run(active.info.run_id)
    assert run.data.params["epochs"] == "1"


def test_names_that_mlflow_refuses(small, tmp_path):
    torch.manual_seed(0)
    model = KerasModel(
        make_mlp(), nn.CrossEntropyLoss(), {"acc@1": Accuracy(task="multiclass", num_classes=2)}
    )
    callback = MLflowCallback(params={"a@b": 1})
    model.fit(
        small, epochs=1, batch_size=50, callbacks=[callback], quiet=True, ckpt_path=tmp_path / "w"
    )
    run = mlflow.get_run(callback.run_id)
    assert run.data.metrics["train_acc_1"] == pytest.approx(model.history["train_acc@1"][0])
    assert run.data.params["a_b"] == "1"


def test_several_processes_log_the_settings_of_the_call(small, tmp_path):
    torch.manual_seed(0)
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    model.fit(
        small, epochs=1, batch_size=50, callbacks=[MLflowCallback()], quiet=True, devices=2,
        cpu=True, ckpt_path=tmp_path / "w",
    )  # fmt: skip
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.params["devices"] == "2"
