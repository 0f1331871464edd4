"""The clock of a run: where steps' time goes, at what cost, with and without a device's events."""

from __future__ import annotations

import pickle
import time

import planted_doctor as planted
import pytest
import torch
from torch import nn

from hotloop import KerasModel
from hotloop.errors import SettingsError
from hotloop.timing.clock import StepClock
from hotloop.timing.phases import PHASES, grouped
from hotloop.timing.report import MeasuredPeak


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def fit(model, loader, **options):
    options = {"epochs": 2, "plot": False, "quiet": True, "cpu": True} | options
    return model.fit(loader, **options)


def test_waiting_for_data_is_seen():
    model = planted.make_model()
    loader = planted.make_loader(planted.Waiting(60), batch_size=4)
    fit(model, loader, val_data=loader, resident_budget=0)
    report = model.time_report()
    assert report.shares["data"] > 0.5
    assert report.verdict.startswith("data-bound")
    assert sum(report.shares.values()) == pytest.approx(1)
    table = report.table()
    epoch = ["train", "val", "between"]
    assert list(table["stage"]) == ["between", *epoch, *epoch]
    assert (table["seconds"] > 0).all()
    steps = table[table["stage"] == "train"]
    assert (steps["steps"] == 15).all()
    assert (steps[["forward", "backward", "optimizer"]] > 0).all().all()
    val = table[table["stage"] == "val"]
    assert (val["backward"] == 0).all()


def test_parts_sum_up_to_the_fit():
    model = planted.make_model()
    started = time.perf_counter()
    fit(model, planted.make_loader())
    seconds = time.perf_counter() - started
    report = model.time_report()
    assert 0 < sum(report.seconds.values()) <= seconds
    assert set(report.seconds) <= set(PHASES)
    assert report.num_steps == 30


def test_a_slow_callback_and_a_slow_metric_are_named():
    model = planted.make_model()
    fit(model, planted.make_loader(), callbacks=[planted.SlowCallback()])
    report = model.time_report()
    assert "SlowCallback.on_train_epoch_end" in report.verdict
    assert report.callbacks["SlowCallback.on_train_epoch_end"] >= 1.0
    model = planted.make_model(metrics={"slow": planted.SlowMetric()})
    fit(model, planted.make_loader(planted.Plain(64)))
    assert model.time_report().verdict.startswith("bound by metrics")


def test_the_line_is_said_after_fit(capsys):
    model = planted.make_model()
    fit(model, planted.make_loader(), quiet=False)
    assert "time: data " in capsys.readouterr().out
    assert "transfer" not in model.time_report().line()  # there is none on a CPU
    assert model.time_report().line().startswith("time: data ")
    assert "peak" not in model.time_report().line()
    model.measured_peak = MeasuredPeak(1000, 16, 1e9, "cpu")
    assert "of this device's measured fp32 peak" in model.time_report().line()
    model.measured_peak = MeasuredPeak(1000, 16, 1.0, "cpu")  # measured under load
    assert model.time_report().peak_share > 1
    assert "peak" not in model.time_report().line()
    model.measured_peak = MeasuredPeak(1000, 16, 1e9, "cuda:0")
    assert model.time_report().peak_share is None


def test_the_share_of_the_peak_is_of_the_samples_that_were_trained_on():
    model = planted.make_model()
    fit(model, planted.make_loader(planted.Plain(240), batch_size=64))
    report = model.time_report()
    seconds = sum(report.seconds[part] for part in ("forward", "backward", "optimizer"))
    trained = [stage for stage in report.stages if stage.stage == "train"]
    assert [stage.num_samples for stage in trained] == [240, 240]
    # counted in steps of 16 samples, before the batches became larger; the last ones have 48
    model.measured_peak = MeasuredPeak(16_000, 16, 1e9, "cpu")
    share = model.time_report().peak_share
    assert share == pytest.approx(1000 * 480 / seconds / 1e9)


def test_a_step_of_the_users_own_is_one_piece():
    class Own:
        def __init__(self, net, loss_fn, accelerator, stage="train", metrics_dict=None,
                     optimizer=None, lr_scheduler=None):  # fmt: skip
            self.net, self.loss_fn, self.optimizer = net, loss_fn, optimizer
            self.stage, self.accelerator, self.metrics_dict = stage, accelerator, metrics_dict

        def __call__(self, batch):
            loss = self.loss_fn(self.net(batch[0]), batch[1])
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return {"train_loss": loss.item()}, {}

    model = planted.make_model()
    model.StepRunner = Own
    fit(model, planted.make_loader())
    seconds = model.time_report().seconds
    assert seconds["step"] > 0
    assert "backward" not in seconds


def test_a_graph_is_one_piece_and_its_building_setup():
    net = nn.Linear(planted.IN, 2)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), 0.1))
    fit(model, planted.make_loader(), compile=True)
    seconds = model.time_report().seconds
    if "graph" not in seconds:
        pytest.skip("no compiler here")
    assert seconds["setup"] > seconds["graph"]


def test_before_fit_there_is_nothing_to_report():
    with pytest.raises(SettingsError, match="call it first"):
        planted.make_model().time_report()


def test_a_fitted_model_can_be_pickled_and_plotted(tmp_path):
    model = planted.make_model()
    model.lr_scheduler = None
    fit(model, planted.make_loader())
    again = pickle.loads(pickle.dumps(model))
    assert again.time_report().num_steps == 30
    figure = again.time_report().plot()
    figure.savefig(tmp_path / "time.png")
    assert (tmp_path / "time.png").stat().st_size > 1000
    assert "forward" in figure.axes[0].get_legend_handles_labels()[1]
    assert "<table" in again.time_report()._repr_html_()


def test_short_steps_are_sampled_and_all_waits_counted():
    clock = StepClock()
    clock.begin_stage("train", 1)
    for _ in range(2000):
        clock.begin_wait()
        clock.end_wait(True)
        if clock.detailed:
            clock.lap("forward")
    clock.begin_wait()
    clock.end_wait(False)
    clock.end_stage()
    (stage,) = clock.stages
    assert stage.num_steps == 2000
    # steps of about no time: the most seldom looks there are
    assert 8 <= stage.num_sampled < 200
    assert stage.seconds["forward"] > 0


def test_what_is_added_counts_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hotloop.timing.clock.perf_counter", lambda: now[0])
    clock = StepClock()
    clock.begin_stage("train", 1)
    for _ in range(3):
        clock.begin_wait()
        clock.end_wait(True)
        now[0] += 2.0
        clock.lap("forward")
        now[0] += 3.0
        clock.add("display", 3.0)
    clock.begin_wait()
    clock.end_wait(False)
    clock.end_stage()
    seconds = {name: value for name, value in clock.stages[0].seconds.items() if value}
    assert seconds == {"display": 9.0, "setup": 2.0, "forward": 4.0}  # and not 18 + 6


def test_groups():
    assert grouped({"data": 1, "forward": 2, "graph": 3, "metrics": 4}) == {
        "data": 1,
        "transfer": 0,
        "compute": 5,
        "rest": 4,
    }
