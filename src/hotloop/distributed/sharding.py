"""One loader's batches, shared out over processes: no sample twice, none left out.

All processes draw the same order of samples, the one a single process would draw. A step of n
processes takes the next ``n * batch_size`` samples; process r gets the r-th part of them. So the
samples of each step are those of one process with the n-fold batch size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from hotloop.errors import DataError

_KNOWN_SAMPLERS = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


class OrderGenerator:
    """The state of torch's generator that all processes draw the order of samples from.

    It is apart from the generator that the net draws from (dropout), which differs by process.

    Args:
        state: where it begins, as ``torch.get_rng_state()`` gives it; the same in all processes.
    """

    def __init__(self, state: torch.Tensor) -> None:
        # an object that whoever saves a run finds, as those that a sampler holds
        self._generator = torch.Generator()
        self._generator.set_state(state)

    @property
    def state(self) -> torch.Tensor:
        """Where it stands."""
        return self._generator.get_state()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this state inside the block, and go on from there the next time."""
        own = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self._generator.set_state(torch.get_rng_state())
            torch.set_rng_state(own)


class ShardPlan:
    """How many samples each process takes in each step of an epoch.

    A last step with fewer samples is shared out as evenly as they go. Should it have fewer
    samples than there are processes, they join the step before: no process is ever without.

    Args:
        num_samples: of the whole data.
        batch_size: of one process.
        num_processes: that train together.
        drop_last: leave a last step out that is not full.
    """

    def __init__(
        self, num_samples: int, batch_size: int, num_processes: int, drop_last: bool
    ) -> None:
        self.num_processes = num_processes
        full = batch_size * num_processes
        num_full, rest = divmod(num_samples, full)
        self.step_sizes = [full] * num_full
        if rest and not drop_last:
            if rest < num_processes and num_full:
                self.step_sizes[-1] += rest
            else:
                self.step_sizes.append(rest)

    def __len__(self) -> int:
        return len(self.step_sizes)

    def bounds(self, step: int, process: int) -> tuple[int, int]:
        """Return where the share of ``process`` begins and ends in the samples of ``step``."""
        size, extra = divmod(self.step_sizes[step], self.num_processes)
        start = process * size + min(process, extra)
        return start, start + size + (process < extra)


class ShardedBatches(BatchSampler):
    """The index batches of one process, drawn as the user's loader would draw them.

    Args:
        loader: the user's.
        plan: the sizes.
        process: this one's number.
        order: draws the order of samples.
    """

    replays_exactly = True  # it may be iterated in place of a loader

    def __init__(
        self, loader: DataLoader[Any], plan: ShardPlan, process: int, order: OrderGenerator
    ) -> None:
        super().__init__(loader.sampler, loader.batch_size or 1, loader.drop_last)
        self.plan, self.process, self.order = plan, process, order
        self._generator = loader.generator
        self._draws_base_seed = True
        self._persistent = loader.persistent_workers

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process' indices, step by step."""
        with self.order.drawing():
            if self._draws_base_seed:  # a loader's iterator draws one before its sampler does
                torch.empty((), dtype=torch.int64).random_(generator=self._generator)
                self._draws_base_seed = not self._persistent
            indices = list(self.sampler)
        start = 0
        for step, size in enumerate(self.plan.step_sizes):
            first, last = self.plan.bounds(step, self.process)
            yield indices[start + first : start + last]
            start += size

    def __len__(self) -> int:
        return len(self.plan)


def shard_loader(
    loader: Any, role: str, process: int, num_processes: int, order: OrderGenerator
) -> DataLoader[Any]:
    """Return a loader of one process' share; the user's own ``DistributedSampler`` is kept.

    Args:
        loader: what the user passed, or hotloop made of a data set.
        role: the argument's name, for errors.
        process: this one's number.
        num_processes: that train together.
        order: draws the order of samples.

    Raises:
        DataError: it cannot be shared out; says why, and what to pass instead.
    """
    check_shardable(loader, role, num_processes)
    if isinstance(loader.sampler, DistributedSampler):
        return loader  # type: ignore[no-any-return]
    num_samples = len(loader.sampler)
    plan = ShardPlan(num_samples, loader.batch_size, num_processes, loader.drop_last)
    workers = {}
    if loader.num_workers:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
            "worker_init_fn": loader.worker_init_fn,
            "timeout": loader.timeout,
        }
    return DataLoader(
        loader.dataset,
        batch_sampler=ShardedBatches(loader, plan, process, order),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        **workers,
    )


def check_shardable(loader: Any, role: str, num_processes: int, started_here: bool = False) -> None:
    """Refuse what cannot be shared out over processes.

    Args:
        loader: what the user passed, or hotloop made of a data set.
        role: the argument's name.
        num_processes: that train together.
        started_here: fit starts the processes itself, so that a ``DistributedSampler`` made
            before cannot know them.

    Raises:
        DataError: says why, and what to pass instead.
    """
    found = type(loader).__name__
    pass_instead = "pass a DataLoader over a data set with __getitem__ and __len__, or arrays"
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"{role} is a {found}, whose batches cannot be shared out over {num_processes} "
            f"processes: {pass_instead}."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(
            f"{role} reads the stream {type(loader.dataset).__name__}, which cannot be shared "
            f"out over {num_processes} processes by index: {pass_instead}."
        )
    sampler: Any = loader.sampler
    if isinstance(sampler, DistributedSampler):
        if started_here or sampler.num_replicas != num_processes:
            raise DataError(
                f"{role} has a DistributedSampler for {sampler.num_replicas} processes made "
                f"before the {num_processes} processes of this fit: pass the loader with "
                f"shuffle=True or False instead, and fit shares it out."
            )
        return
    if type(loader.batch_sampler) is not BatchSampler or type(sampler) not in _KNOWN_SAMPLERS:
        own = sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler
        raise DataError(
            f"{role} has a {type(own).__name__}, whose order may differ from process to process: "
            f"pass shuffle=True or one of torch's samplers, or start the processes with torchrun "
            f"and pass a DistributedSampler."
        )
    num_samples = len(sampler)
    if num_samples < num_processes:
        raise DataError(
            f"{role} has {num_samples} samples for {num_processes} processes, and each needs one: "
            f"pass more data, or fewer devices."
        )
    full = (loader.batch_size or 1) * num_processes
    if loader.drop_last and num_samples < full:
        raise DataError(
            f"{role} has {num_samples} samples, which make no full step of {num_processes} times "
            f"{loader.batch_size}, and drop_last is set: pass a smaller batch_size."
        )
