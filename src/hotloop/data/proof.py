"""Is a loader's reading the same in any process? Looked at before its workers are changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from hotloop.data.encoding import same_bits
from hotloop.data.purity import DatasetAttributes, find_state, read_samples
from hotloop.data.random_state import RandomStates
from hotloop.data.sampling import IndexBatches, replay_is_faithful
from hotloop.data.workers import can_fork
from hotloop.data.working_time import working_seconds
from hotloop.distributed.processes import world_size
from hotloop.nested import iterate_leaves

_PROBE_SAMPLES = 32
_PROBE_CHUNK = 4
_PROBE_SECONDS = 0.15  # the run waits for it: of slow samples fewer are read


@dataclass(frozen=True)
class Proof:
    """Whether a loader's workers may be changed, and how the samples were read that showed it.

    Attributes:
        reason: why they may not; None where they may.
        sample_seconds: for reading and collating one sample, about; 0 where none was read.
        work_share: of that time, that it worked instead of waiting.
    """

    reason: str | None
    sample_seconds: float = 0.0
    work_share: float = 1.0


def reason_against_workers(loader: Any) -> str | None:
    """Return why the number of a loader's workers cannot be changed, None where it can."""
    return prove_workers(loader).reason


def prove_workers(loader: Any) -> Proof:
    """Find out whether the number of a loader's workers can be changed.

    It can where batches, their order and the use of random numbers stay what they are: reading
    is a function of the index alone, and the sampler draws at the start of an epoch. A few
    samples are read twice for that, with collating, and the states put back.
    """
    reason = _reason_by_looking(loader)
    return _probe(loader) if reason is None else Proof(reason)


def _reason_by_looking(loader: Any) -> str | None:
    if world_size() > 1:
        return "several processes train together, and their workers would share the cores"
    if type(loader) is not DataLoader:
        return f"it is a {type(loader).__name__}, whose reading is unknown"
    dataset: Any = loader.dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return "its data set is a stream, which each worker would read whole"
    if type(loader.batch_sampler) is not BatchSampler or not IndexBatches(loader).draws_at_once:
        return "its sampler may draw while batches are read"
    if loader.worker_init_fn is not None:
        return "its worker_init_fn may change the data set"
    if not getattr(loader, "in_order", True):
        return "in_order=False leaves the order of batches to chance"
    if hasattr(dataset, "set_epoch"):
        return "its data set has set_epoch"
    if loader.multiprocessing_context is None and not can_fork():
        return "workers do not start as copies of this process here"
    if not replay_is_faithful():
        return "this version of torch draws random numbers in an order not known"
    state = find_state(dataset) or find_state(loader.collate_fn)
    if state is not None:
        return f"it holds {state}, so that samples may differ from worker to worker"
    return None


def _probe(loader: DataLoader[Any]) -> Proof:
    dataset: Any = loader.dataset
    size = min(loader.batch_size or 1, _PROBE_CHUNK)
    step = max(len(dataset) // _PROBE_SAMPLES, 1)
    spread = list(range(0, len(dataset), step))[:_PROBE_SAMPLES]
    before, attributes = RandomStates.read(), DatasetAttributes.read(dataset)
    seconds = worked = 0.0
    num_read = 0
    try:
        for begin in range(0, len(spread), size):
            indices = spread[begin : begin + size]
            started, work_started = time.perf_counter(), working_seconds()
            first = loader.collate_fn(read_samples(dataset, indices))
            seconds += time.perf_counter() - started
            worked += working_seconds() - work_started
            num_read += len(indices)
            again = loader.collate_fn(read_samples(dataset, indices))
            if before.moved():
                return Proof(f"reading it draws random numbers ({', '.join(before.moved())})")
            if not same_batch(first, again):
                return Proof("a sample read twice is not the same")
            if 2 * seconds > _PROBE_SECONDS:
                break
    except Exception as error:  # noqa: BLE001 - training will meet it where it belongs
        return Proof(f"reading a few of its samples failed ({error})")
    finally:
        before.restore()
        attributes.restore()
    return Proof(None, seconds / max(num_read, 1), min(worked / max(seconds, 1e-9), 1.0))


def same_batch(left: Any, right: Any) -> bool:
    """Tell whether two batches hold the same bits, and nothing that cannot be compared."""
    first, second = list(iterate_leaves(left)), list(iterate_leaves(right))
    if len(first) != len(second):
        return False
    for (path, one), (other_path, other) in zip(first, second, strict=True):
        if path != other_path or type(one) is not type(other):
            return False
        if isinstance(one, torch.Tensor):
            if not same_bits(one, other):
                return False
        elif not isinstance(one, (str, bytes, int, float, bool, type(None))) or one != other:
            return False
    return True
