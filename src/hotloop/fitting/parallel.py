"""What one of several processes does differently while it trains."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data.distributed import DistributedSampler

from hotloop.data.adapt import BatchSource
from hotloop.data.budget import resident_budget
from hotloop.distributed.devices import DevicePlan
from hotloop.distributed.group import (
    all_names,
    broadcast,
    broadcast_buffers,
    from_main_process,
    join_group,
    largest_of_each,
    seed_by_rank,
)
from hotloop.distributed.net import NetInParallel
from hotloop.distributed.processes import rank, world_size
from hotloop.distributed.reducing import (
    SharedMetrics,
    average_gradients,
    check_metrics_can_be_shared,
    differing,
    mean_across,
)
from hotloop.distributed.sharding import OrderGenerator, ShardedBatches, ShardPlan, shard_loader
from hotloop.errors import ProcessError, SettingsError
from hotloop.fitting.interrupt import Interrupt
from hotloop.metrics.accumulate import LossLog, compute_metrics, named_metrics

_SECONDS_BETWEEN_CHECKS = 0.5
_UNSUPPORTED = {
    "save_every_seconds": None,
    "on_non_finite": "stop",
    "on_bad_sample": "raise",
}  # by name, with the value that is fine


class Parallel:
    """One process' part of a fit in several processes.

    Args:
        plan: the devices.

    Attributes:
        net: the net, wrapped; set by ``wrap``.
        device: of this process.
        order: draws the order of samples, alike in all processes.
        interrupt: a signal that stops all processes at the same step.
        tell_stopped: as of the plan.
    """

    net: NetInParallel

    def __init__(self, plan: DevicePlan) -> None:
        self.device = plan.own_device
        join_group(self.device)
        self.order = OrderGenerator(from_main_process(torch.get_rng_state(), self.device))
        seed_by_rank(self.device)
        self.interrupt = SharedInterrupt(self.device)
        self.tell_stopped = plan.tell_stopped
        self._shard_plan: ShardPlan | None = None
        self._samplers: list[Any] = []
        self._step = 0
        self._others: list[tuple[str, torch.Tensor]] = []
        self._in_training = False
        self._hook: Any = None

    def shard(self, source: BatchSource) -> BatchSource:
        """Return a source of this process' share of the batches.

        Raises:
            DataError: the data cannot be shared out.
        """
        loader = shard_loader(source.batches, source.role, rank(), world_size(), self.order)
        if isinstance(loader.batch_sampler, ShardedBatches) and source.role == "train_data":
            self._shard_plan = loader.batch_sampler.plan
        if isinstance(loader.sampler, DistributedSampler):
            self._samplers.append(loader.sampler)
        return BatchSource(loader, source.role, source.device)

    def check_metrics(self, metrics: nn.Module) -> None:
        """Refuse metrics that cannot be added up over processes.

        Raises:
            MetricError: names the metric.
        """
        check_metrics_can_be_shared(named_metrics(metrics))

    def wrap(
        self, net: nn.Module, others: list[tuple[str, torch.Tensor]], own_steps: bool
    ) -> NetInParallel:
        """Return the net as it trains; all processes begin with the main process' weights.

        Args:
            net: the user's.
            others: names and parameters beside the net's, as those of a loss.
            own_steps: code of the user's steps the optimizers.
        """
        self.net = NetInParallel(net, self.device)
        self._others = others
        for _, parameter in others:
            broadcast(parameter)
        if own_steps:  # of which nothing is known but that a step of an optimizer follows

            def average(optimizer: Any, *_: Any) -> None:
                if self._in_training:
                    self.average_rest(parameters_of(optimizer))

            self._hook = register_optimizer_step_pre_hook(average)
        return self.net

    def average_rest(self, parameters: Iterable[torch.Tensor]) -> None:
        """Average the gradients that the backward pass of the net did not average by itself.

        Those are of parameters beside the net's (a loss', a second net's), and the net's own where
        a step calls its methods or parts and not the net itself.

        Args:
            parameters: the same in all processes.
        """
        rest = [p for p in parameters if p.requires_grad and not self.net.averages(p)]
        average_gradients(rest, self.device)

    def resident_share(self, share: float | None) -> float | None:
        """Return the share of the memory for one process, where all have the same memory."""
        if self.device.type != "cpu":
            return share
        asked = resident_budget(self.device, share) / max(resident_budget(self.device, 1.0), 1)
        return asked / world_size()

    def start_stage(self, stage: str, epoch: int) -> None:
        """Begin a stage of an epoch counted from 1."""
        self._step = 0
        self.interrupt.start_stage(training=stage == "train")
        self._in_training = stage == "train"
        if stage == "train":
            self.net.follow_trained()
            for sampler in self._samplers:
                sampler.set_epoch(epoch)

    def end_training(self, epoch: int) -> None:
        """End the training stage of an epoch, counted from 1.

        All go on with the main process' running statistics.

        Raises:
            ProcessError: the processes have come to different weights.
        """
        self._in_training = False
        broadcast_buffers(self.net)
        apart = differing([*self.net.named_parameters(), *self._others], self.device)
        if apart:
            more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
            raise ProcessError(
                f"{', '.join(apart[:3])}{more} differ between the processes after epoch {epoch}, "
                f"so that they train different nets: change weights and learning rates alike in "
                f"all processes, call the net once for each backward pass, and step the optimizer "
                f"in all or none of them."
            )

    def close(self) -> None:
        """Take no part in the steps of optimizers any more."""
        self._in_training = False
        if self._hook is not None:
            self._hook.remove()

    def go_on_after(self, num_batches: int) -> None:
        """Count training batches of the running epoch that were done before."""
        self._step = num_batches

    def next_batch(self) -> None:
        """Count a training batch."""
        self._step += 1
        self.net.begin_batch()

    def step_size(self, own: int) -> int:
        """Return the samples of the running step over all processes, ``own`` of them here."""
        if self._shard_plan is None or not self._step:
            return own * world_size()
        return self._shard_plan.step_sizes[self._step - 1]

    def weigh(self, loss: torch.Tensor) -> torch.Tensor:
        """Weigh a loss such that the average over processes is that over samples.

        Processes average their gradients with equal weights; where they have different numbers of
        samples, m_i of M, that of process i of n counts n * m_i / M.
        """
        if self._shard_plan is None or not self._step:
            return loss
        first, last = self._shard_plan.bounds(self._step - 1, rank())
        size = self._shard_plan.step_sizes[self._step - 1]
        weight = (last - first) * world_size() / size
        return loss if weight == 1 else loss * weight

    def means(self, logs: Mapping[str, LossLog]) -> dict[str, float]:
        """Return the averages over all processes' samples, of those where a step returned them."""
        names = all_names(list(logs))
        none = LossLog()
        found = [logs.get(name, none) for name in names]
        pairs = [(log.values(), log.num_samples) for log in found]
        return dict(zip(names, mean_across(pairs, self.device), strict=True))

    def compute_metrics(self, metrics: nn.Module, stage: str) -> dict[str, Any]:
        """Return the metrics' values over all processes' samples."""
        with SharedMetrics(metrics).merged():
            return compute_metrics(metrics, stage)

    def same_for_all(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the main process' values, so that all processes decide alike."""
        agreed: dict[str, Any] = from_main_process(values, self.device)
        return agreed

    def finish(self) -> None:
        """Give every process the main process' buffers, and its place in the order of samples."""
        broadcast_buffers(self.net)
        torch.set_rng_state(self.order.state)


class SharedInterrupt(Interrupt):
    """Ctrl-C in any process stops all of them at the same training step.

    They agree about twice a second; the main process says at which step the next time is.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._training = False
        self._step, self._next_check = 0, 1
        self._last_step, self._last_time = 0, time.perf_counter()

    def start_stage(self, training: bool) -> None:
        """Begin a stage; its first training step is one to agree at."""
        self._training = training
        self._step, self._next_check = 0, 1
        self._last_step, self._last_time = 0, time.perf_counter()

    def next_from(self, iterator: Iterator[Any]) -> Any:
        """Return the iterator's next value, None at its end."""
        return next(iterator, None)

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` in all processes when one was asked to stop."""
        if not self._training:
            return
        self._step += 1
        if self._step < self._next_check:
            return
        proposal = self._propose() if rank() == 0 else 0
        stop, self._next_check = largest_of_each([int(self.requested), proposal], self._device)
        if stop:
            self.requested = True
            self.received = self.received or "a signal in another process"
            if self.before_stop is not None:
                self.before_stop()
            raise KeyboardInterrupt

    def _propose(self) -> int:
        now = time.perf_counter()
        seconds = max(now - self._last_time, 1e-6)
        per_check = (self._step - self._last_step) * _SECONDS_BETWEEN_CHECKS / seconds
        self._last_step, self._last_time = self._step, now
        return self._step + max(1, min(int(per_check), 1000))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.received = self.received or signal.Signals(number).name
        self.requested = True


def parameters_of(optimizer: Any) -> list[torch.Tensor]:
    """Return the parameters that an optimizer steps."""
    return [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]


def refuse_unsupported(arguments: Mapping[str, Any], epoch_runner_is_ours: bool) -> None:
    """Refuse what several processes cannot do.

    Args:
        arguments: of ``fit``.
        epoch_runner_is_ours: whether the epoch's averages are hotloop's own.

    Raises:
        SettingsError: names it.
    """
    for name, usual in _UNSUPPORTED.items():
        if arguments.get(name, usual) != usual:
            raise SettingsError(
                f"{name}={arguments[name]!r} does not go with devices=: leave one of them out."
            )
    if not epoch_runner_is_ours:
        raise SettingsError(
            "devices= does not go with an EpochRunner of your own, whose averages would be those "
            "of one process' share: leave one of them out."
        )
