"""A function recorded as a CUDA graph, and what it leaves behind where that fails."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

_num_failures = 0
_failed: list[Any] = []  # allocators may still hold on to what a failed capture told them


class Capture(Protocol):
    """Something that runs a recorded function again, with results at the same addresses."""

    results: Any

    def replay(self) -> None:
        """Run it."""


class CudaCapture:
    """A function captured as a CUDA graph; it has no arguments and reads fixed addresses.

    Raises:
        RuntimeError: what the function did cannot be captured; the device is as before then, but
            graphs that were captured earlier are not to be used any more (``num_failures``).
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        try:
            self._record(function)
            return
        except Exception as error:
            if not _names_a_stale_stream(error):
                raise
        # outside the handler, whose traceback holds on to what the capture made
        torch.cuda.synchronize()
        self._record(function)

    def _record(self, function: Callable[[], Any]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = torch.cuda.graph_pool_handle()
        device, stream = torch.cuda.current_device(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[device]
        spare = generator.clone_state()
        gc.collect()  # not in between, where freeing another graph would end this capture
        try:
            # another thread (a loader that pins memory) may talk to the driver meanwhile
            with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
                self.results = function()
        except Exception:
            _clean_up(device, stream, generator, spare, self._pool)
            _failed.append(self._graph)
            raise

    def replay(self) -> None:
        """Queue the graph on the current stream."""
        self._graph.replay()


def _clean_up(device: int, stream: Any, generator: Any, spare: Any, pool: Any) -> None:
    """Undo what torch 2.11 leaves of a failed capture.

    Its stream stays current, random numbers are refused and its memory pool stays open. The
    generator gets another state in the place of the one that takes itself for captured, which
    graphs of before do not know.
    """
    global _num_failures
    _num_failures += 1
    torch.cuda.set_stream(stream)
    generator.graphsafe_set_state(spare)
    with contextlib.suppress(RuntimeError):  # where the pool was closed, that is an error
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


def _names_a_stale_stream(error: BaseException) -> bool:
    """Tell whether a node of an eager step, on that step's stream, was still there.

    A node that adds gradients up keeps its stream as long as anything of the step's autograd graph
    lives (https://github.com/pytorch/pytorch/issues/164302), if only in a thread of the engine.
    """
    texts = (str(one) for one in (error, error.__context__) if one is not None)
    return any("legacy stream" in text or "stale" in text for text in texts)


class CaptureQuestions:
    """Whether code asks if it is captured, and what it is told.

    transformers leaves out a mask that masks nothing, but not in a capture.

    Attributes:
        asked: whether anybody did.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def answered(self, truly: bool) -> Iterator[None]:
        """Note questions inside the block; where not ``truly``, tell that there is no capture."""
        answer = torch.cuda.is_current_stream_capturing

        def is_current_stream_capturing() -> bool:
            self.asked = True
            return truly and answer()

        torch.cuda.is_current_stream_capturing = is_current_stream_capturing
        try:
            yield
        finally:
            torch.cuda.is_current_stream_capturing = answer


def num_failures() -> int:
    """Return how many captures have failed in this process; graphs of before are of no use."""
    return _num_failures


def run_aside(function: Callable[[], Any], device: torch.device) -> Any:
    """Run a function on another stream than the default one, which cannot be captured."""
    if device.type != "cuda":
        return function()
    current, aside = torch.cuda.current_stream(device), stream_for_warm_up(device)
    aside.wait_stream(current)
    try:
        with torch.cuda.stream(aside):
            return function()
    finally:  # what is undone after an error comes after the function's kernels
        current.wait_stream(aside)


@functools.cache
def stream_for_warm_up(device: torch.device) -> Any:
    """Return one stream for all warm-ups: each has workspaces of its own."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
