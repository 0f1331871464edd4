"""An accelerator's own times, by stand-in events: what it waited for, and how a stage divides."""

from __future__ import annotations

import pytest
import torch

from hotloop.data.adapt import BatchSource
from hotloop.timing.clock import StageTimes, StepClock
from hotloop.timing.device_events import DeviceEvents
from hotloop.timing.report import TimeReport, as_seen

NUM_STEPS = 5


class FakeEvent:
    """An event of a device that counts milliseconds, one for each event."""

    now = 0

    def record(self):
        FakeEvent.now += 1
        self.at = FakeEvent.now

    def query(self):
        return True

    def elapsed_time(self, later):
        return later.at - self.at


def test_a_devices_events_are_read_without_waiting():
    events = DeviceEvents(FakeEvent)
    for _ in range(2):
        events.begin()
        events.record("data")
        events.record("forward")
        events.end("rest")
    seconds = events.take()
    assert seconds == pytest.approx({"data": 0.002, "forward": 0.002, "rest": 0.002})
    assert events.take() == {}
    assert DeviceEvents.for_device(torch.device("cpu")) is None


@pytest.fixture
def clock():
    clock = StepClock()
    clock._events = DeviceEvents(FakeEvent)
    return clock


def run_stage(clock, batches, stage="val"):
    clock.begin_stage(stage, 1)
    iterator = iter(batches)
    while True:
        clock.begin_wait()
        batch = next(iterator, None)
        clock.end_wait(batch is not None)
        if batch is None:
            break
        clock.lap("forward")
    clock.end_stage()
    return clock.stages[-1]


def milliseconds(stage):
    return {name: round(value * 1e3, 6) for name, value in stage.device_seconds.items()}


def test_a_clock_with_events_has_the_devices_times_of_sampled_steps(clock):
    stage = run_stage(clock, range(NUM_STEPS))
    assert stage.num_sampled == NUM_STEPS
    assert milliseconds(stage) == {"data": NUM_STEPS, "forward": NUM_STEPS, "rest": NUM_STEPS}
    # a run's first training step is setup, on the device too
    stage = run_stage(clock, range(NUM_STEPS), "train")
    assert milliseconds(stage)["forward"] == NUM_STEPS - 1
    clock.finish()
    assert clock.stages[-1] is stage


def test_the_copy_of_a_batch_is_transfer(clock):
    batches = [torch.zeros(2) for _ in range(NUM_STEPS)]
    source = BatchSource(batches, "train_data", torch.device("meta"))
    source.clock = clock
    stage = run_stage(clock, source)
    # the wait until a batch is read, its copy, the way to the step
    times = {"data": 2.0, "transfer": 1.0, "forward": 1.0, "rest": 1.0}
    assert milliseconds(stage) == {name: value * NUM_STEPS for name, value in times.items()}
    assert stage.seconds["transfer"] > 0  # the host's, where a backend has no events
    report = TimeReport(clock, "cuda:0")
    assert report.shares["transfer"] == pytest.approx(0.25)
    assert report.shares["data"] == pytest.approx(0.5)


def test_a_devices_times_divide_what_the_host_spent_on_steps():
    host = {"data": 1.0, "forward": 1.0, "callbacks": 2.0, "rest": 4.0}
    device = {"data": 0.1, "transfer": 0.1, "forward": 0.2, "rest": 0.3}
    seen = as_seen(StageTimes(1, "train", 10, 10, dict(host), device))
    # callbacks are the host's; of the other 6 s the device says how they divide
    expected = {"callbacks": 2.0, "data": 1.5, "transfer": 1.5, "forward": 3.0}
    assert seen == pytest.approx(expected)
    for nothing in (None, {}, {"rest": 0.3}):
        assert as_seen(StageTimes(1, "train", 10, 10, dict(host), nothing)) == host


def test_events_of_mps_are_left_alone():
    assert DeviceEvents.for_device(torch.device("mps")) is None
