"""What keeps a loader from reading is said in a sentence, whatever loader it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import hotloop
from hotloop import KerasModel
from hotloop.data.read_errors import explain_read_error, lacks_shared_memory
from hotloop.errors import DataError, OutOfMemoryError, SampleError, WorkerDiedError


class Rows(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.ones(4), index % 2


class Greedy(Rows):
    def __getitem__(self, index):
        np.zeros((2**24, 2**24))
        return super().__getitem__(index)


class Late(Rows):
    def __getitem__(self, index):
        time.sleep(30 * (index == 20))
        return super().__getitem__(index)


class Stream(IterableDataset):
    """Ends the worker that reads it."""

    def __iter__(self):
        for index in range(32):
            if index == 20 and get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            yield torch.ones(4), index % 2


class OwnLoader(DataLoader):
    pass


def collate_greedily(samples):
    return torch.empty(2**50)


def fit(loader, **options):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    return model.fit(loader, epochs=1, cpu=True, plot=False, quiet=True, **options)


def predict(loader):
    return KerasModel(make_mlp(), nn.CrossEntropyLoss()).predict(loader)


@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL")
@pytest.mark.parametrize("run", [fit, predict])
def test_a_dead_worker_of_a_stream_is_told(run):
    with pytest.raises(WorkerDiedError, match=r"worker of \w*data died .*num_workers=0 reads"):
        run(DataLoader(Stream(), batch_size=8, num_workers=1))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("loader_class", [DataLoader, OwnLoader])
def test_a_batch_that_does_not_fit_the_host_is_told(num_workers, loader_class):
    loader = loader_class(
        Rows(), batch_size=8, num_workers=num_workers, collate_fn=collate_greedily
    )
    mend = "a smaller batch_size" + (r" or fewer num_workers \(there are 1\)" * num_workers)
    with pytest.raises(OutOfMemoryError, match=f"a batch of train_data was read .*{mend}") as told:
        fit(loader)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_that_does_not_fit_the_host_is_told(num_workers):
    with pytest.raises(SampleError, match=r"Unable to allocate .*; pass fewer num_workers or"):
        fit(DataLoader(Greedy(), batch_size=8, num_workers=num_workers))


def test_a_loaders_timeout_is_told():
    with pytest.raises(DataError, match=r"no batch of train_data came within the timeout=1 of"):
        fit(DataLoader(Late(), batch_size=8, num_workers=1, timeout=1))


def torch_says(text):
    return RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\nTrace\n  {text}\n")


@pytest.mark.parametrize(
    "error",
    [
        torch_says(
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: No space "
            "left on device (28)"
        ),
        torch_says("RuntimeError: unable to write to file </torch_1_2_3>: No space left on device"),
        RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory. Please try to raise your shared memory "
            "limit."
        ),
    ],
)
def test_full_shared_memory_is_told(error):
    told = explain_read_error(error, "train_data", DataLoader(Rows(), num_workers=2), [])
    assert isinstance(told, WorkerDiedError)
    assert lacks_shared_memory(error)
    assert "docker run --shm-size" in str(told)
    assert "\n" not in str(told)


def test_a_users_own_error_stays():
    loader = DataLoader(Rows(), num_workers=2)
    for error in (
        RuntimeError("mine"),
        torch_says("ConnectionResetError: of a database"),
        OSError(),
    ):
        assert explain_read_error(error, "train_data", loader, []) is None


SMALL = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from hotloop import KerasModel
from hotloop.errors import WorkerDiedError

class Wide(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.ones(50_000), index % 2

model = KerasModel(nn.Linear(50_000, 2), nn.CrossEntropyLoss())
options = dict(epochs=1, cpu=True, plot=False, quiet=True, resident_budget=0)
try:
    model.fit(DataLoader(Wide(), batch_size=32, num_workers=2), **options)
except WorkerDiedError as error:
    print("told", "--shm-size" in str(error))
print(len(model.fit(DataLoader(Wide(), batch_size=32), tune="auto", **options)))
"""


def test_a_shared_memory_that_is_too_small():
    inside = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    enter = ["unshare", "-m", "sh", "-c", inside, "sh"]
    try:
        may_mount = not subprocess.run([*enter, "true"], capture_output=True).returncode
    except FileNotFoundError:
        may_mount = False
    if not may_mount:
        pytest.skip("a file system cannot be mounted here")
    environment = os.environ | {"PYTHONPATH": str(Path(hotloop.__file__).parents[1])}
    done = subprocess.run(
        [*enter, sys.executable, "-c", SMALL],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["told True", "1"], done.stdout + done.stderr
