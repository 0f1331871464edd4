"""Each part of a step is counted as what it is: by a clock that moves where a part tells it."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.callbacks.progress import Progress
from hotloop.fitting.loop import _Display
from hotloop.fitting.step import StepRunner
from hotloop.metrics.accumulate import LossLog
from hotloop.timing.clock import StepClock

FORWARD, BACKWARD, OPTIMIZER, METRICS, SAVE, SHOW = 3.0, 5.0, 7.0, 11.0, 13.0, 17.0
NUM_STEPS = 4
TIMED = 2 * NUM_STEPS - 1  # of two epochs; a run's first step is setup


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def __deepcopy__(self, memo):  # a fit copies metrics
        return self

    def tick(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("hotloop.timing.clock.perf_counter", clock)
    return clock


class Net(nn.Module):
    def __init__(self, clock, most=100):
        super().__init__()
        self.linear, self.clock, self.most = nn.Linear(4, 2), clock, most

    def forward(self, inputs):
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.clock.tick(FORWARD)
        outputs = self.linear(inputs)
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: self.clock.tick(BACKWARD))
        return outputs


class Optimizer(torch.optim.SGD):
    clock = None

    def step(self, closure=None):
        self.clock.tick(OPTIMIZER)
        return super().step(closure)


class Metric(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def forward(self, preds, labels):
        self.clock.tick(METRICS)

    def compute(self):
        return 0.0

    def reset(self):
        pass


class Callback:
    """A callback with a state that takes its time to be saved."""

    def __init__(self, clock):
        self.clock = clock

    def state_dict(self):
        self.clock.tick(SAVE)
        return {}

    def load_state_dict(self, state):
        pass


def train(clock, tmp_path, most=100, kind=StepRunner, **options):
    torch.manual_seed(0)
    net = Net(clock, most)
    optimizer = Optimizer(net.parameters(), lr=0.01)
    optimizer.clock = clock
    model = KerasModel(net, nn.CrossEntropyLoss(), {"m": Metric(clock)}, optimizer, StepRunner=kind)
    rows = TensorDataset(torch.randn(8 * NUM_STEPS, 4), torch.arange(8 * NUM_STEPS) % 2)
    model.fit(DataLoader(rows, 8), epochs=2, quiet=True, plot=False, cpu=True, exact=True,
              ckpt_path=tmp_path / "checkpoint", **options)  # fmt: skip
    stages = [stage for stage in model.time_report().stages if stage.stage == "train"]
    names = {name for stage in stages for name in stage.seconds}
    return {name: sum(stage.seconds.get(name, 0.0) for stage in stages) for name in names}


def assert_parts(seconds, forwards=1):
    expected = {"forward": forwards * FORWARD, "backward": forwards * BACKWARD,
                "optimizer": OPTIMIZER, "metrics": METRICS}  # fmt: skip
    for name, value in expected.items():
        assert seconds[name] == pytest.approx(TIMED * value), name


@pytest.mark.parametrize(
    "options",
    [{}, {"on_non_finite": "skip"}, {"on_non_finite": "rewind", "save_every_steps": 100}],
)
def test_the_parts_of_a_step(clock, tmp_path, options):
    assert_parts(train(clock, tmp_path, **options))


@pytest.mark.parametrize("on_non_finite", ["stop", "skip"])
def test_the_parts_of_a_batch_that_is_split(clock, tmp_path, on_non_finite):
    assert_parts(train(clock, tmp_path, most=4, on_non_finite=on_non_finite), forwards=2)


class Wrapped(StepRunner):
    """Does something after hotloop's own step."""

    def __call__(self, batch):
        result = super().__call__(batch)
        self.net.clock.tick(1.0)
        return result


def test_a_step_around_hotloops_own_keeps_its_parts(clock, tmp_path):
    seconds = train(clock, tmp_path, kind=Wrapped)
    assert_parts(seconds)
    assert seconds["step"] == pytest.approx(TIMED * 1.0)


def test_a_runner_with_a_step_of_its_own_is_a_step():
    model = zoo.make_gan_model()
    rows = TensorDataset(torch.randn(64, 8), torch.zeros(64))
    model.fit(DataLoader(rows, 8), epochs=2, quiet=True, plot=False, cpu=True)
    seconds = model.time_report().seconds
    assert seconds["step"] > 0
    assert {"forward", "backward", "optimizer"}.isdisjoint(seconds)
    assert "metrics" not in model.time_report().verdict


def test_saves_between_steps_are_checkpoints(clock, tmp_path):
    seconds = train(clock, tmp_path, save_every_steps=2, callbacks=[Callback(clock)])
    assert_parts(seconds)  # and nothing of the saves in them
    assert seconds["checkpoint"] >= SAVE
    assert seconds["checkpoint"] % SAVE == 0


class Shown(Progress):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.values = clock, None

    def show(self, values):
        self.clock.tick(SHOW)
        self.values = values


def test_drawing_what_came_back_from_a_device_is_display(clock):
    step_clock, progress = StepClock(), Shown(clock)
    display = _Display(
        "train", progress, nn.ModuleDict(), {"train_loss": LossLog()}, lambda: None, step_clock
    )
    step_clock.begin_stage("train", 1)
    display._names = ["loss"]
    display._readback.start(torch.tensor([0.5]))
    step_clock.begin_wait()
    step_clock.end_wait(True)
    display.step(8, {})
    step_clock.begin_wait()
    step_clock.end_wait(False)
    step_clock.end_stage()
    assert progress.values == {"loss": 0.5}
    assert step_clock.stages[0].seconds["display"] == SHOW
    assert sum(step_clock.stages[0].seconds.values()) == SHOW
