"""A step captured once as a CUDA graph, and replayed: no launch is made by Python.

What a capture bakes in, and what is done about it: inputs (copied into buffers of its own, or read
where they lie when each step gets the same tensors), outputs (copied out, or into the rows of a
ring by the graph itself), random numbers (torch registers its CUDA generator with the capture).
Python code runs at capture only: ``prover`` has shown that it does nothing else than compute.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.errors import first_line
from hotloop.fitting.graph.capture import (
    Capture,
    CaptureQuestions,
    CudaCapture,
    num_failures,
    run_aside,
)
from hotloop.fitting.graph.declined import DeclinedError, MovedError
from hotloop.fitting.graph.forms import identities_of
from hotloop.fitting.graph.kernels import Kernels, Sketch, TorchKernels
from hotloop.fitting.graph.noise import Noise, share_among
from hotloop.fitting.graph.output_ring import OutputRing
from hotloop.fitting.graph.pure_step import cloned, detached
from hotloop.fitting.graph.undo import same_values, undone

_WARM_UP_STEPS = 3  # cuBLAS, cuDNN and the allocator settle; undone afterwards
_MORE_RUNS = 3  # that show by how much a step differs from itself, which one may hide by chance


class ReplayEngine:
    """A step as a CUDA graph, on the net's own parameters and buffers; here forward and loss.

    Attributes:
        exact: whether a replay gives bit for bit what the step gives; not where its kernels add in
            an order of their own, or are not the step's.
        params: as every ``Engine`` has.
        gradients: as every ``Engine`` has.

    Args:
        graphed: the run's ``GraphedStep``.
        leaves: the tensors of one batch.
        capture: records the step; takes a function without arguments.
        kernels: compute it.

    Raises:
        DeclinedError: there are no such kernels, the capture failed, or a replay does not give bit
            for bit what the same function gives when it is called.
    """

    updates = True  # there is nothing to update
    updated = True

    def __init__(
        self,
        graphed: Any,
        leaves: Sequence[torch.Tensor],
        capture: Callable[[Callable[[], Any]], Capture] = CudaCapture,
        kernels: Callable[[Sketch], Kernels] = TorchKernels,
    ) -> None:
        self.params: list[torch.Tensor] = []
        self.gradients: list[Any] = []
        self._prepare(graphed)
        self.module = graphed.module
        self._precision = graphed.accelerator.precision
        self._fixed = graphed.stay_in_place(leaves)
        self._leaves = [
            leaf if fixed else leaf.clone() for leaf, fixed in zip(leaves, self._fixed, strict=True)
        ]
        self._places = [leaf.data_ptr() for leaf in self._leaves]
        self._keeps_preds = graphed.settings.keeps_preds
        self._num_kept = graphed.settings.num_kept
        self._ring: OutputRing | None = None
        self._parameters = list(self.module.parameters())  # held on to: an id is not used again
        self._layout = self._describe()
        self._kernels = kernels(self._sketch())
        self._capture_as_called(capture)

    def _prepare(self, graphed: Any) -> None:
        """Take note of what this kind of step needs, before anything is run."""

    def start(self) -> None:
        """Nothing is held outside of the tensors themselves."""

    def finish(self) -> None:
        """Nothing is held outside of the tensors themselves."""

    def step(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Replay the step on a batch.

        Raises:
            MovedError: the tensors are others than those that every step had so far.
        """
        for index, leaf in enumerate(leaves):
            if not self._fixed[index]:
                self._leaves[index].copy_(leaf, non_blocking=True)
            elif leaf.data_ptr() != self._places[index]:
                raise MovedError
        self._before_replay()
        self._capture.replay()
        loss, preds = self._capture.results[:2]
        if self._ring is not None:
            return self._ring.take(preds)
        return loss.clone(), cloned(preds) if self._keeps_preds else preds

    def is_current(self) -> bool:
        """Tell whether all addresses and settings are those of the capture."""
        return self._num_failures == num_failures() and self._describe() == self._layout

    def state(self) -> list[torch.Tensor]:
        """Return all tensors that a step may change."""
        return [tensor.detach() for tensor in self._held()]

    def find_rounding(
        self, before: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Find nothing in a step that changes nothing."""
        del before, leaves
        return {}

    def _trained(self) -> list[torch.Tensor] | None:
        """Return what gradients are computed of; None for no gradients."""
        return None

    def _scale(self) -> torch.Tensor | None:
        """Return the scale of the loss, for the gradients."""
        return None

    def _sketch(self) -> Sketch:
        return Sketch(
            self.module,
            self._trained(),
            self._leaves,
            # nothing of the engine's own, which would keep itself, and the graph's memory
            functools.partial(_autocast, self._precision.device_type, self._precision.dtype),
            self._precision.dtype,
            self._scale(),
        )

    def _compute(self) -> tuple[torch.Tensor, Any]:
        """Run the step; return loss and predictions."""
        return self._kernels.run()[:2]

    def _before_replay(self) -> None:
        """Write the numbers that a graph reads."""

    def _change_numbers(self) -> None:
        """Write other numbers than the next step's, for a trial."""

    def _run(self) -> tuple[Any, ...]:
        """Run the step and note its results; this is what is captured.

        Returns:
            Loss and predictions, and what else it computes.
        """
        loss, preds = self._compute()
        if self._ring is not None:
            self._ring.write(loss.detach(), detached(preds))
        return loss.detach(), detached(preds)

    def _held(self) -> list[torch.Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def _capture_as_called(self, capture: Callable[[Callable[[], Any]], Capture]) -> None:
        """Capture what a call computes, also where code that knows of a capture does otherwise."""
        questions = CaptureQuestions()
        with questions.answered(truly=True):
            self._capture = self._record(capture)
        if self._is_verified():
            return
        if questions.asked:
            del self._capture  # and its memory
            try:
                with questions.answered(truly=False):
                    self._capture = self._record(capture)
            except DeclinedError as error:
                raise DeclinedError(
                    "forward or loss compute otherwise while a graph is captured, and cannot be "
                    "captured as they are"
                ) from error
            if self._is_verified():
                return
        raise DeclinedError("a replay differs from the step itself")

    def _record(self, capture: Callable[[Callable[[], Any]], Capture]) -> Capture:
        """Warm up and capture; parameters, state and random numbers are put back."""
        with self._undone():
            try:
                self._warm_up()
                captured = capture(self._run)
                self._num_failures = num_failures()  # now: there may have been some before
                return captured
            except Exception as error:
                # what ends a capture raises too, after the error that tells the reason
                first = error.__context__ if isinstance(error.__context__, Exception) else error
                raise DeclinedError(f"it cannot be captured: {first_line(first)}") from error

    def _warm_up(self) -> None:
        for _ in range(_WARM_UP_STEPS):
            loss, preds = run_aside(self._run, self._leaves[0].device)[:2]
            if self._ring is None and self._num_kept:  # on the stream of those who read it
                self._ring = OutputRing(loss, preds, self._num_kept + 1, self._keeps_preds)

    def _is_verified(self) -> bool:
        """Compare a replay with a call, on another batch and with other numbers.

        A step whose kernels add in an order of their own (atomics) differs from itself; there the
        replay must be as near to a call as other calls are.
        """
        other = [leaf.flip(0) if leaf.dim() else leaf.clone() for leaf in self._leaves]
        called, replayed = self._try(other, False), self._try(other, True)
        state = self.state()
        num_results = len(called) - len(state)
        before = [*map(torch.zeros_like, called[:num_results]), *state]
        noise, agree = Noise(called, before), True
        for _ in range(_MORE_RUNS):
            agree &= noise.add(self._try(other, False))
        same = all(same_values(a, b) for a, b in zip(called, replayed, strict=True))
        self.exact = same and agree and self._kernels.exact
        if same:
            return True
        share = 0.0
        if agree:
            replays = [replayed, *[self._try(other, True) for _ in range(_MORE_RUNS)]]
            share = share_among(replays, before)
        return noise.covers(replayed, share)

    def _try(self, leaves: Sequence[torch.Tensor], replayed: bool) -> list[torch.Tensor]:
        """Return all that a step gives and changes, which is undone."""
        with self._undone():
            for buffer, leaf, fixed in zip(self._leaves, leaves, self._fixed, strict=True):
                if not fixed:  # else it is the user's own memory
                    buffer.copy_(leaf)
            self._change_numbers()
            if replayed:
                self._capture.replay()
            results = self._capture.results if replayed else self._run()
            found = [t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]
            return [tensor.clone() for tensor in [*found, *self.state()]]

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        with undone(self.state, self._leaves[0].device):
            yield
        if self._ring is not None:
            self._ring.rewind()

    def _describe(self) -> tuple[Any, ...]:
        return (
            identities_of(self.module),
            tuple(
                (t.data_ptr(), t.shape, t.stride(), t.dtype, t.requires_grad) for t in self._held()
            ),
            torch.are_deterministic_algorithms_enabled(),
            *_float32_settings(),
        )


def _autocast(device_type: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    if dtype is None:
        return contextlib.nullcontext()
    # a cached cast would be replayed from the capture's first use of a weight
    return torch.autocast(device_type, dtype=dtype, cache_enabled=False)


def _float32_settings() -> tuple[Any, ...]:
    """Return how float32 products are computed; torch has an older and a newer way to say so."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the newer one was used, and says what the older one cannot
        cudnn: Any = torch.backends.cudnn
        return (
            torch.backends.cuda.matmul.fp32_precision,
            cudnn.conv.fp32_precision,
            cudnn.rnn.fp32_precision,
        )
