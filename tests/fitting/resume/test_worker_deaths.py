"""Loader workers killed at the seams of a run: it goes on to the bits of the undisturbed one."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from faults.child import in_child, start_child
from faults.jobs import fingerprint
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate, get_worker_info

from hotloop import KerasModel
from hotloop.data import guarded as guarded_module
from hotloop.data.reading import WorkerStart
from hotloop.errors import WorkerDiedError


class Deadly(Dataset):
    """Noisy rows; the worker that reads one while the file is there is killed, and takes it."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(120, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if get_worker_info() is not None and self._spring():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inputs[index] + 0.1 * torch.randn(4), int(self.inputs[index, 0] > 0)

    def _spring(self) -> bool:
        try:
            self.trap.unlink()
        except FileNotFoundError:
            return False
        return True


class AfterEpoch:
    """Does something at the end of one epoch's training or validation."""

    def __init__(self, epoch: int, hook: str, do) -> None:
        self.epoch, self.do = epoch, do
        setattr(self, f"on_{hook}_epoch_end", self._look)

    def _look(self, model) -> None:
        if len(model.history["epoch"]) == self.epoch:
            self.do()


def own_workers() -> list[multiprocessing.Process]:
    """The workers of this process; the one that it was forked from may have some too."""
    return [w for w in multiprocessing.active_children() if w._parent_pid == os.getpid()]


def kill_a_worker() -> None:
    worker = own_workers()[0]
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet asked after


def look_for_deaths_often() -> None:
    """Let torch look every 0.2 seconds, instead of every five, whether a process still lives."""
    torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)
    torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.2


_traps = itertools.count()


def fit(path: Path, **options):
    """Train in a process of its own."""
    look_for_deaths_often()
    return train(path, **options)


def train(path: Path, dies_after: int | None = None, callback=None, persistent: bool = True):
    """Train; a worker dies at the next read after so many epochs."""
    trap = path / f"trap-{next(_traps)}"  # a file of its own: workers of an earlier fit may live
    if dies_after == 0:
        trap.touch()
    elif dies_after is not None:
        callback = AfterEpoch(dies_after, "train", trap.touch)
    torch.manual_seed(0)
    net = nn.Sequential(*make_mlp(), nn.Dropout(0.3))
    model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(net.parameters()))
    loader = DataLoader(
        Deadly(trap), batch_size=8, shuffle=True, num_workers=2, persistent_workers=persistent
    )
    history = model.fit(
        loader, epochs=3, resume=True, quiet=True, ckpt_path=path / "best", save_every_steps=4,
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    return fingerprint(model, history)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict]:
    folder = tmp_path_factory.mktemp("whole")
    results = {}
    (folder / "here").mkdir()
    train(folder / "here", persistent=False)  # imports once for all processes made from this one
    for persistent in (False, True):
        (folder / str(persistent)).mkdir()
        results[persistent] = in_child(fit, folder / str(persistent), persistent=persistent)
    return results


@pytest.mark.parametrize("persistent", [False, True])
def test_before_the_first_sample_and_again_on_going_on(tmp_path: Path, whole, persistent: bool):
    for _ in range(2):
        assert in_child(fit, tmp_path, dies_after=0, persistent=persistent) is None
    assert in_child(fit, tmp_path, persistent=persistent) == whole[persistent]


@pytest.mark.parametrize("persistent", [False, True])
def test_before_the_first_batch_after_going_on(tmp_path: Path, whole, persistent: bool):
    for epoch in (1, 0, 0):  # in the second epoch; then as soon as it goes on, two times
        assert in_child(fit, tmp_path, dies_after=epoch, persistent=persistent) is None
    assert in_child(fit, tmp_path, persistent=persistent) == whole[persistent]


@pytest.mark.parametrize("hook", ["train", "validation"])
def test_between_two_epochs(tmp_path: Path, whole, hook: str):
    assert in_child(fit, tmp_path, callback=AfterEpoch(1, hook, kill_a_worker)) is None
    assert in_child(fit, tmp_path) == whole[True]


class Killing(RandomSampler):
    """Kills a worker when it is first asked for indices, which is while workers are started."""

    asked = False

    def __init__(self, data: Dataset, kill=kill_a_worker) -> None:
        super().__init__(data)
        self.kill = kill

    def __iter__(self):
        if not self.asked:
            self.kill()
        self.asked = True  # not so where a signal's handler raises in here
        yield from super().__iter__()


def fit_with_killing_sampler(path: Path) -> list:
    look_for_deaths_often()
    data = Deadly(path / "no-trap")
    sampler = Killing(data)
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    loader = DataLoader(data, batch_size=8, sampler=sampler, num_workers=2)
    try:
        model.fit(loader, epochs=1, resume=True, quiet=True)
    except WorkerDiedError as error:
        return [sampler.asked, str(error)]
    return ["no error"]


def test_while_workers_are_started(tmp_path: Path):
    asked, text = in_child(fit_with_killing_sampler, tmp_path)
    assert asked
    assert "killed by SIGKILL" in text


def kill_the_run() -> None:
    # what a worker has sent and nobody takes; more than a pipe holds, so that it waits to send
    Path("workers").write_text(json.dumps([w.pid for w in own_workers()]))
    os.kill(os.getpid(), signal.SIGKILL)


def fit_with_much_under_way(path: Path) -> None:
    look_for_deaths_often()
    loader = DataLoader(
        Deadly(path / "no-trap"), batch_size=2, num_workers=1, prefetch_factor=30,
        collate_fn=lambda samples: (*default_collate(samples), "x" * 10_000),
    )  # fmt: skip

    class Model(KerasModel):
        def step(self, batch):
            kill_the_run()

    Model(make_mlp(), nn.CrossEntropyLoss()).fit(loader, monitor="train_loss", quiet=True)


def fit_that_is_killed_while_a_worker_starts(path: Path) -> None:
    look_for_deaths_often()

    def start_late(worker_id: int) -> None:
        Path("workers").write_text(json.dumps([os.getpid()]))
        time.sleep(0.5)

    class Start(WorkerStart):
        def __call__(self, worker_id: int) -> None:
            start_late(worker_id)
            super().__call__(worker_id)

    guarded_module.WorkerStart = Start
    sampler = Killing(Deadly(path / "no-trap"), kill=lambda: os.kill(os.getpid(), signal.SIGKILL))
    loader = DataLoader(sampler.data_source, 8, sampler=sampler, num_workers=1)
    KerasModel(make_mlp(), nn.CrossEntropyLoss()).fit(loader, monitor="train_loss", quiet=True)


@pytest.mark.parametrize(
    "function", [fit_with_much_under_way, fit_that_is_killed_while_a_worker_starts]
)
def test_workers_end_with_a_run_that_was_killed(tmp_path: Path, function):
    pid = start_child(function, tmp_path)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    while not (tmp_path / "workers").exists() or not (tmp_path / "workers").read_text():
        time.sleep(0.01)
    (worker,) = json.loads((tmp_path / "workers").read_text())
    for _ in range(600):
        if not is_alive(worker):
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its run")


def is_alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
