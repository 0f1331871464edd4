"""Say in one sentence what kept a loader from reading, where torch tells it from its depths."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from typing import Any

from torch.utils.data import DataLoader

from hotloop.errors import DataError, HotloopError, WorkerDiedError
from hotloop.memory import is_out_of_memory, out_of_memory, shortage

SHARED_MEMORY_MEND = (
    "make it larger (docker run --shm-size=8g, or --ipc=host), pass fewer num_workers, a smaller "
    "prefetch_factor or batch_size"
)
# how the file of a batch in shared memory is told not to fit
_SHARED_MEMORY = re.compile(
    r"unable to (write to|open|mmap|allocate|resize)[^\n]*(torch_|shared memory)[^\n]*"
    r"|killed by signal: Bus error"
)
_DIED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (exited unexpectedly|is killed[^.]*)"
)
_TIMED_OUT = "DataLoader timed out after"


def lacks_shared_memory(error: BaseException) -> bool:
    """Tell whether workers failed for want of shared memory; older torch lets them die of that."""
    died = isinstance(error, WorkerDiedError) and "SIGBUS" in str(error)
    return died or _SHARED_MEMORY.search(str(error)) is not None


def explain_read_error(
    error: BaseException, role: str, batches: Any, workers: list[Any]
) -> HotloopError | None:
    """Return the error to raise in place of one that a loader's reading raised.

    Args:
        error: as it came.
        role: the data's name.
        batches: what was read.
        workers: the loader's processes, where they are known.

    Returns:
        None where it is the user's own code's, or hotloop has explained it.
    """
    text = str(error)
    raised = (RuntimeError, MemoryError, OSError, EOFError)
    if isinstance(error, HotloopError) or not isinstance(error, raised):
        return None
    num_workers = batches.num_workers if isinstance(batches, DataLoader) else 0
    if (shared := _SHARED_MEMORY.search(text)) is not None:
        return WorkerDiedError(
            f"the shared memory in which loader workers hand over the batches of {role} is full "
            f"({shared[0]}): {SHARED_MEMORY_MEND}; num_workers=0 needs none."
        )
    if _TIMED_OUT in text:
        return DataError(
            f"no batch of {role} came within the timeout={batches.timeout:g} of its loader: find "
            f"out what its samples wait for (a lock that was held when the workers were forked, a "
            f"file or network that does not answer), or raise timeout."
        )
    # a worker that is gone takes along what was to be fetched from it; what it raised itself
    # comes with its traceback
    lost = isinstance(error, (ConnectionError, FileNotFoundError, EOFError)) and bool(num_workers)
    died = _DIED.search(text)
    if died is not None or (lost and not text.startswith("Caught ")):
        how = died[1].strip() if died is not None else shortage(error)
        with contextlib.suppress(RuntimeError):  # torch may tell of it by a signal meanwhile
            how = next((end_of(dead) for dead in wait_for_dead(workers)), how)
        return WorkerDiedError(
            f"a loader worker of {role} died ({how}): look whether its samples can be read and "
            f"whether the machine ran out of memory; num_workers=0 reads them in this process."
        )
    if is_out_of_memory(error):
        fewer = f" or fewer num_workers (there are {num_workers})" if num_workers else ""
        what = f"memory ran out while a batch of {role} was read"
        return out_of_memory(what, error, f"pass a smaller batch_size{fewer}")
    return None


def wait_for_dead(workers: list[Any], seconds: float = 1.0) -> list[Any]:
    """Return the workers that have died, as soon as one has; none after ``seconds``."""
    until = time.perf_counter() + seconds
    while True:
        dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
        if dead or time.perf_counter() >= until:
            return dead
        time.sleep(0.01)


def end_of(worker: Any) -> str:
    """Say how a worker that has died did."""
    worker.join(timeout=1.0)  # so that its exit code is known
    code = worker.exitcode
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"
