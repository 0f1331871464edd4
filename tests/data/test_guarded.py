"""Loaders read through a guard: the same batches, and samples named that cannot be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from hotloop import KerasModel
from hotloop.checkpoint.run import RunFolder
from hotloop.data.guarded import can_guard, guarded
from hotloop.errors import DataError, SampleError, WorkerDiedError


class Rows(Dataset):
    """Rows with noise; some cannot be read, and one ends its process."""

    def __init__(self, bad: tuple[int, ...] = (), deadly: int = -1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(60, 4, generator=generator)
        self.bad, self.deadly = bad, deadly

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index in self.bad:
            raise OSError(f"image {index} is truncated")
        if index == self.deadly and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inputs[index] + 0.1 * torch.randn(4), int(self.inputs[index, 0] > 0)


class TogetherRows(Rows):
    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        return [self[index] for index in indices]


def fit(dataset: Dataset, num_workers: int = 0, **options):
    torch.manual_seed(0)
    net = make_mlp()
    model = KerasModel(net, nn.CrossEntropyLoss())
    loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=num_workers)
    history = model.fit(loader, epochs=2, quiet=True, **options)
    return model, history


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_batches_and_random_states_are_the_loaders_own(num_workers: int, persistent: bool):
    options = {"num_workers": num_workers, "persistent_workers": persistent and num_workers > 0}
    epochs = []
    for guard in (False, True):
        torch.manual_seed(0)
        loader = DataLoader(Rows(), batch_size=8, shuffle=True, **options)
        found = []
        for _ in range(2):
            source = guarded(loader, "train_data", False, True).read() if guard else loader
            found += [batch[0] for batch in source]
        epochs.append((torch.cat(found), torch.get_rng_state()))
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(epochs[0][1], epochs[1][1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_named_with_its_traceback(num_workers: int):
    with pytest.raises(SampleError) as raised:
        fit(Rows(bad=(17,)), num_workers, resume=True)
    text = str(raised.value)
    assert raised.value.index == 17
    assert "sample 17 of train_data cannot be read" in text
    assert "OSError: image 17 is truncated" in text
    assert "in __getitem__" in text
    assert "on_bad_sample='skip'" in text
    # and the run is saved as it was before that batch
    assert RunFolder(Path("checkpoint.run")).latest(pytest.fail) is not None


def test_samples_that_are_read_together_are_named_together():
    with pytest.raises(SampleError, match=r"samples \[.*17.*\] of train_data cannot be read"):
        fit(TogetherRows(bad=(17,)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_left_out_and_listed(num_workers: int):
    model, history = fit(Rows(bad=(3, 17)), num_workers, on_bad_sample="skip")
    assert sorted(index for index, _ in model.skipped_samples) == [3, 3, 17, 17]
    assert "OSError: image 3 is truncated" in dict(model.skipped_samples)[3]
    assert len(history) == 2
    assert history["train_loss"].notna().all()


def test_what_was_left_out_is_still_listed_after_going_on():
    class Stop:
        def on_train_epoch_end(self, model):
            if len(model.history["epoch"]) == 2:
                raise InterruptedError

    options = {"on_bad_sample": "skip", "resume": True}
    with pytest.raises(InterruptedError):
        fit(Rows(bad=(3, 17)), callbacks=[Stop()], **options)
    model, _ = fit(Rows(bad=(3, 17)), **options)
    assert sorted(index for index, _ in model.skipped_samples) == [3, 3, 17, 17]


def test_a_batch_of_bad_samples_alone_is_left_out(capsys):
    model, history = fit(Rows(bad=tuple(range(60))[8:]), on_bad_sample="skip")
    assert history["train_loss"].notna().all()
    assert len(model.skipped_samples) == 2 * 52


def test_where_samples_are_not_read_one_by_one_it_is_said(capsys):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    batches = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))]
    model.fit(batches, epochs=1, plot=False, on_bad_sample="skip")
    assert "on_bad_sample has no effect on train_data" in capsys.readouterr().out


def test_a_killed_worker_is_named_with_the_sample_it_was_reading():
    with pytest.raises(WorkerDiedError, match=r"killed by SIGKILL\) at sample 23: look") as raised:
        fit(Rows(deadly=23), num_workers=2, resume=True)
    # torch's watchdog saw it, or the connection through which its batch was to be fetched
    assert isinstance(raised.value.__cause__, (RuntimeError, OSError, EOFError))
    assert isinstance(raised.value, DataError)
    assert RunFolder(Path("checkpoint.run")).latest(pytest.fail) is not None


def test_a_worker_that_is_killed_with_a_batch_under_way_is_named():
    loader = DataLoader(torch.zeros(40, 3), 4, num_workers=1)
    guard = guarded(loader, "train_data", skip_bad=False, track=False)
    batches = guard.read()
    next(batches)
    (worker,) = guard._iterator._workers
    torchs = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # which would raise here already
    try:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        with pytest.raises(WorkerDiedError, match="killed by SIGKILL"):
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, torchs)


def test_the_users_worker_init_sees_the_users_data_set():
    def init(worker_id: int) -> None:
        dataset = get_worker_info().dataset
        dataset.inputs = torch.full((60, 4), 100.0 + worker_id)

    loader = DataLoader(Rows(), batch_size=8, num_workers=2, worker_init_fn=init)
    batches = guarded(loader, "train_data", False, False).read()
    assert {round(batch[0].mean().item()) for batch in batches} == {100, 101}


def test_what_is_not_guarded():
    class Own(DataLoader):
        pass

    assert can_guard(DataLoader(Rows(), batch_size=8))
    assert not can_guard(Own(Rows(), batch_size=8))
    assert not can_guard(DataLoader(Rows(), batch_size=None))
    assert not can_guard([torch.zeros(1)])


SPAWNS = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from hotloop import KerasModel

class Rows(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.full((4,), float(index)), index % 2

def train(method, **options):
    model = KerasModel(nn.Linear(4, 2), nn.CrossEntropyLoss())
    loader = DataLoader(
        Rows(), batch_size=8, num_workers=1, multiprocessing_context=method, **options
    )
    history = model.fit(loader, epochs=1, quiet=True, exact=True)
    print("trained", len(history))
"""


def run_script(folder: Path, last_lines: str) -> subprocess.CompletedProcess:
    script = folder / "script.py"
    script.write_text(SPAWNS + last_lines, encoding="utf-8")
    source = str(Path(__file__).parents[2] / "src")
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip


def test_workers_of_a_fork_server_read_and_end(tmp_path: Path):
    found = run_script(tmp_path, "if __name__ == '__main__':\n    train('forkserver')\n")
    assert found.stdout == "trained 1\n", found.stderr


def test_a_script_that_workers_cannot_import_again_is_told_so(tmp_path: Path):
    found = run_script(tmp_path, "train('spawn')\n")
    last = found.stderr.strip().rpartition("\n")[2]
    assert "before its first sample: workers start by spawn here" in last
    assert "if __name__ == '__main__':" in last


def test_a_loader_that_cannot_be_sent_to_spawned_workers_is_told_so(tmp_path: Path):
    found = run_script(
        tmp_path,
        "if __name__ == '__main__':\n    train('spawn', collate_fn=lambda rows: rows)\n",
    )
    last = found.stderr.strip().rpartition("\n")[2]
    assert "DataError: the loader of train_data cannot be sent to its workers" in last
    assert "none of them a lambda; num_workers=0 reads it in this process" in last


def test_how_processes_start_stays_for_the_user_to_choose():
    script = """
import multiprocessing
from hotloop.data.workers import can_fork
assert can_fork() == (multiprocessing.get_all_start_methods()[0] == "fork")
multiprocessing.set_start_method("spawn")
assert not can_fork()
"""
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=300)
