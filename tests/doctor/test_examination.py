"""The doctor names planted bottlenecks rightly, and leaves everything as it was."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import planted_doctor as planted
import pytest
import torch

from hotloop import KerasModel
from hotloop.data.workers import usable_cores
from hotloop.doctor.findings import Change, Diagnosis
from hotloop.doctor.mistakes import mistakes_of_reading, mistakes_of_step, mistakes_of_use
from hotloop.doctor.reading import examine
from hotloop.doctor.watch import StepFacts
from hotloop.errors import DiagnosisError, SettingsError

SETTINGS = {"cpu": True, "epochs": 3}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def argument_of(found, name):
    return next(change for change in found.changes if change.name == name)


@pytest.mark.parametrize(
    ("dataset", "collate", "expected"),
    [
        (planted.Waiting, planted.quick_collate, "data: storage"),
        (planted.Decoding, planted.quick_collate, "data: decode"),
        (planted.Plain, planted.slow_collate, "data: collate"),
    ],
)
def test_slow_data_is_named_with_its_cause(dataset, collate, expected):
    loader = planted.make_loader(dataset(), collate_fn=collate)
    found = planted.make_model().diagnose(loader, seconds=3, **SETTINGS)
    assert found.bottleneck == expected
    assert "its collate_fn is your own" in found.explanation
    assert found.epoch_seconds["data"] > 0.5 * found.total_seconds
    assert found.ceiling_seconds == pytest.approx(found.total_seconds - found.epoch_seconds["data"])
    resident = argument_of(found, "resident")
    assert resident.gain > 1.5
    assert resident.how == "predicted"


def test_workers_for_data_that_waits():
    loader = planted.make_loader(planted.Waiting(), collate_fn=planted.quick_collate)
    found = planted.make_model().diagnose(loader, seconds=10, **SETTINGS)
    rates = {row.num_workers: row.batches_per_second for row in found.loader}
    assert 0 in rates  # with the largest number tried: others where time allows
    assert len(rates) >= 2
    change = argument_of(found, "workers")
    assert change.argument.startswith("DataLoader(..., num_workers=")
    assert (change.numbers, change.how) == ("same", "measured")
    assert "tune" in change.note
    assert change.gain > 1.3


def test_tune_is_not_advised_for_workers_that_the_user_chose():
    loader = planted.make_loader(planted.Waiting(), collate_fn=planted.quick_collate, num_workers=1)
    found = planted.make_model().diagnose(loader, seconds=12, **SETTINGS)
    assert argument_of(found, "workers").note == ""


def test_workers_for_data_that_draws_would_change_the_numbers():
    loader = planted.make_loader(planted.Drawing(), batch_size=8)
    found = planted.make_model().diagnose(loader, seconds=10, **SETTINGS)
    assert argument_of(found, "workers").numbers == "changed"
    assert "reading it draws random numbers (random)" in argument_of(found, "workers").note
    assert "batch_transform" in argument_of(found, "resident").argument


def test_data_that_fit_holds_in_memory_is_spread_over_the_epochs():
    found = planted.make_model().diagnose(
        planted.make_loader(planted.Waiting()), seconds=3, **SETTINGS
    )
    assert any("it is read once" in note for note in found.notes)
    assert "serves it from memory" in found.explanation


def test_a_slow_metric_and_a_slow_callback():
    model = planted.make_model(metrics={"slow": planted.SlowMetric()})
    found = model.diagnose(planted.make_loader(), seconds=12, **SETTINGS)
    assert found.bottleneck == "metrics"
    change = argument_of(found, "metrics")
    assert change.how == "measured"  # steps without metrics were run
    assert change.gain > 2
    callbacks = [planted.SlowCallback()]
    model = planted.make_model()
    found = model.diagnose(planted.make_loader(), seconds=2, callbacks=callbacks, **SETTINGS)
    assert found.bottleneck == "callbacks"
    assert found.epoch_seconds["callbacks"] > 0.5


def test_tiny_batches_and_arithmetic():
    model = planted.make_model()
    found = model.diagnose(planted.make_loader(batch_size=2), seconds=10, **SETTINGS)
    assert found.bottleneck == "compute: small batches"
    change = argument_of(found, "batch_size")
    assert (change.numbers, change.how) == ("changed", "measured")
    assert "small_batches" in [mistake.kind for mistake in found.mistakes]
    model = planted.make_model(planted.make_net(20_000))
    found = model.diagnose(planted.make_loader(batch_size=120), seconds=4, **SETTINGS)
    assert found.bottleneck == "compute: arithmetic"
    # two products of 120 x 20 x 20000 and 120 x 20000 x 2; backward needs no gradient of the data
    assert found.step_flops == 2 * 120 * 20_000 * (20 * 2 + 2 * 3)
    assert found.physical_seconds > 0
    assert model.measured_peak.step_flops == found.step_flops


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_mistakes_in_the_step():
    model = planted.make_model(kind=planted.ReadsBack, metrics={"host": planted.OnHost()})
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(model.optimizer, T_max=3)
    model.lr_scheduler = scheduler
    loader = planted.make_loader(planted.Drawing(), num_workers=usable_cores() + 1)
    found = model.diagnose(loader, seconds=4, **SETTINGS)
    kinds = {mistake.kind: mistake for mistake in found.mistakes}
    assert {"sync", "print", "metric_on_host", "workers_above_cores", "scheduler_interval"} <= set(
        kinds
    )
    assert "planted_doctor.py" in kinds["sync"].text
    assert "step" in kinds["sync"].text


@pytest.fixture(scope="module")
def plain():
    """A diagnosis of a training with nothing planted."""
    return planted.make_model().diagnose(planted.make_loader(), seconds=3, **SETTINGS)


def test_a_clean_step_has_no_mistakes(plain):
    # but that its batches are small, and what this processor could do in bfloat16
    assert {mistake.kind for mistake in plain.mistakes} <= {"small_batches", "fp32"}


class FromFiles(planted.Plain):
    def __init__(self, path):
        super().__init__(64)
        self.path = path
        path.write_bytes(bytes(100_000))

    def __getitem__(self, index):
        with open(self.path, "rb") as file:
            file.read()
        return super().__getitem__(index)


def test_files_that_are_decoded_each_epoch(tmp_path):
    loader = planted.make_loader(FromFiles(tmp_path / "image"), collate_fn=planted.quick_collate)
    reading = examine(loader, 0.5)
    assert reading.reread_bytes >= 200_000
    (mistake,) = mistakes_of_reading(reading)
    assert mistake.kind == "decoded_again"
    assert str(tmp_path / "image") in mistake.text
    reading.reread_files = ()  # as where a library opens them without Python
    assert " KiB of files for each sample" in mistakes_of_reading(reading)[0].text
    assert mistakes_of_reading(examine(planted.make_loader(), 0.5)) == []


class StepsScheduler(KerasModel):
    def step(self, batch):
        self.lr_scheduler.step()
        return super().step(batch)


def test_a_scheduler_that_a_step_steps_itself():
    model = planted.make_model(kind=StepsScheduler)
    kinds = [mistake.kind for mistake in mistakes_of_step(StepFacts(), model, torch.device("cpu"))]
    assert kinds == ["scheduler_interval"]


def test_fp32_where_bf16_was_faster():
    found = Diagnosis("cpu", bottleneck="compute: arithmetic")
    assert mistakes_of_use(found, 1.0) == []
    found.changes = [Change("bf16", 'fit(mixed_precision="bf16")', 3.0, 2.0, "measured")]
    (mistake,) = mistakes_of_use(found, 1.0)
    assert mistake.kind == "fp32"
    assert "1.50 times" in mistake.text


def test_a_busy_machine_is_not_taken_for_a_slow_disk():
    """Work that has no processor to itself is work."""
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("the system does not tell")
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("a process cannot be kept on a processor here")
    command = [sys.executable, "-c", "while True: pass"]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # what competes begins there, and disturbs no other
    competitors = []
    try:
        competitors += [subprocess.Popen(command) for _ in range(2)]
        reading = examine(planted.make_loader(planted.Decoding(64)), 0.5)
    finally:
        os.sched_setaffinity(0, cores)
        for competitor in competitors:
            competitor.kill()
            competitor.wait()
    assert reading.cause == "decode"


def states_of(model, generators):
    tensors = {**model.net.state_dict()}
    for key, value in model.optimizer.state.items():
        tensors |= {f"{id(key)}.{name}": tensor for name, tensor in value.items()}
    return {
        "tensors": {name: copy.deepcopy(tensor) for name, tensor in tensors.items()},
        "groups": [
            {k: v for k, v in group.items() if k != "params"}
            for group in model.optimizer.param_groups
        ],
        "scheduler": {
            k: v for k, v in model.lr_scheduler.state_dict().items() if not k.startswith("_")
        },
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "generators": [generator.get_state() for generator in generators],
        "training": [module.training for module in model.modules()],
        "gradients": [parameter.grad for parameter in model.net.parameters()],
        "threads": torch.get_num_threads(),
    }


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    return left == right


def test_nothing_is_moved():
    model = planted.make_model()
    generator = torch.Generator().manual_seed(3)
    loader = planted.make_loader(planted.Drawing(), generator=generator)
    model.fit(planted.make_loader(), epochs=1, quiet=True, plot=False, cpu=True)
    model.lr_scheduler.optimizer.zero_grad()
    model.net[0].eval()
    before = states_of(model, [generator])
    callbacks = [planted.SlowCallback()]
    model.diagnose(loader, planted.make_loader(), seconds=4, callbacks=callbacks, **SETTINGS)
    after = states_of(model, [generator])
    for name, value in before.items():
        assert same(value, after[name]), name
    assert same({"a": torch.zeros(1)}, {"a": torch.ones(1)}) is False


def test_a_generator_of_a_transform_is_not_moved():
    generator = torch.Generator().manual_seed(3)

    def noisy(inputs):
        return inputs + torch.rand(inputs.shape, generator=generator)

    before = generator.get_state()
    noisy(torch.zeros(2))
    assert not torch.equal(generator.get_state(), before)
    generator.set_state(before)
    planted.make_model().diagnose(
        planted.make_loader(), seconds=1, batch_transform=noisy, **SETTINGS
    )
    assert torch.equal(generator.get_state(), before)


def test_numbers_after_a_diagnosis_are_those_without_one():
    histories = []
    for diagnosed in (False, True):
        torch.manual_seed(5)
        random.seed(5)
        model, loader = planted.make_model(), planted.make_loader(planted.Drawing(64))
        if diagnosed:
            model.diagnose(loader, seconds=1, **SETTINGS)
        frame = model.fit(loader, epochs=2, quiet=True, plot=False, cpu=True)
        histories.append((frame, model.net.state_dict()))
    assert histories[0][0].equals(histories[1][0])
    assert same(dict(histories[0][1]), dict(histories[1][1]))


def test_json_has_all_parts(plain):
    values = json.loads(plain.to_json())
    assert values["bottleneck"] == plain.bottleneck
    assert values["num_batches"] == 15
    assert values["batch_size"] == 16
    assert values["flops_per_second"] > 0
    assert values["epoch_seconds"]["checkpoint"] > 0
    assert all(change["gain"] > 1 for change in values["changes"])
    gains = [change["gain"] for change in values["changes"]]
    assert gains == sorted(gains, reverse=True)
    assert plain.bottleneck in str(plain)


class Unreadable(planted.Plain):
    def __getitem__(self, index):
        raise ValueError("no such image")


def test_all_that_fit_takes_can_be_diagnosed_but_batches_never_exceed_the_data():
    found = planted.make_model().diagnose(
        planted.make_loader(planted.Plain(20)), seconds=1, cpu=True, resume=True, epochs=2,
        on_bad_sample="skip", save_every_steps=5, devices=1, plot=False, patience=2,
    )  # fmt: skip
    assert any("sharing gradients" in note for note in found.notes)
    assert "batch_size" not in [change.name for change in found.changes]


def test_what_cannot_be_tried_is_said():
    model = planted.make_model()
    with pytest.raises(DiagnosisError, match="an iterator, which a trial would use up"):
        model.diagnose(iter(planted.make_loader()), cpu=True)
    for seconds in (0.1, float("nan"), float("inf"), "5", True):
        with pytest.raises(DiagnosisError, match="is no time for a trial"):
            model.diagnose(planted.make_loader(), seconds=seconds, cpu=True)
    with pytest.raises(DiagnosisError, match=r"reading samples 0, 1, 2, 3 \.\.\. failed"):
        model.diagnose(torch.utils.data.DataLoader(Unreadable(), 8), cpu=True)
    with pytest.raises(SettingsError, match="no argument epoch:"):
        model.diagnose(planted.make_loader(), epoch=3)
    model.net.file = open(__file__)  # noqa: SIM115 - what cannot be copied
    try:
        with pytest.raises(DiagnosisError, match="cannot be copied"):
            model.diagnose(planted.make_loader(), cpu=True)
    finally:
        model.net.file.close()


def test_lists_of_batches_have_no_workers_to_try():
    batches = list(planted.make_loader())
    found = planted.make_model().diagnose(batches, seconds=1, **SETTINGS)
    assert found.loader == []
    assert found.num_batches == 15
