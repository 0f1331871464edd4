"""What each of several processes has of its own in a checkpoint, which the main one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hotloop.checkpoint.run import Checkpoint, RunFolder
from hotloop.distributed.group import from_all_processes, from_main_process
from hotloop.distributed.processes import is_main_process, rank, world_size
from hotloop.errors import CheckpointError
from hotloop.fitting.resume.snapshot import put_back
from hotloop.nested import map_leaves

_OTHERS = "others"  # in a state: the parts of all processes but the main one
# of accumulated batches, which every process adds up by itself until a group of them ends
_OWN_OF_TRAINING = ("gradients", "other_gradients")


def with_others(state: dict[str, Any], buffers: dict[str, Any]) -> dict[str, Any]:
    """Return a state with what the other processes have of their own: all call it together.

    Weights and optimizer state are alike. Random states, places in the data, sums of losses and
    metrics, gradients that are being accumulated, and buffers (a loss' are never averaged) are each
    process' own.

    Args:
        state: of this process, with its entry "training".
        buffers: of this process, as ``read_changing`` returns them.
    """
    own = {name: value for name, value in state.items() if name != "training"}
    own["training"] = {name: state["training"][name] for name in _OWN_OF_TRAINING}
    own["buffers"] = buffers
    return {**state, _OTHERS: from_all_processes(map_leaves(own, _on_host))[1:]}


def own_part(state: dict[str, Any], folder: Path, several: bool) -> dict[str, Any]:
    """Return this process' state of a checkpoint.

    Args:
        state: of the checkpoint.
        folder: where it is saved, for the message.
        several: processes train together.

    Raises:
        CheckpointError: it is of another number of processes.
    """
    there = 1 + len(state.get(_OTHERS, []))
    here = world_size() if several else 1
    if there != here:
        mend = f"pass devices={there}" if there > 1 else "leave devices= out"
        raise CheckpointError(
            f"the run in '{folder}' is of {there} process{'es' if there > 1 else ''}, and here "
            f"{here} would go on with it: {mend}, or begin a new run, with another ckpt_path, from "
            f"its weights (load_ckpt)."
        )
    if not several or rank() == 0:
        return state
    part = state[_OTHERS][rank() - 1]
    training = {**state["training"], **part["training"]}
    put_back(training, part["buffers"])
    return {**state, **part, "training": training}


def find_together(folder: RunFolder, say: Any, device: torch.device) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, the same in all processes.

    Raises:
        CheckpointError: a process does not see the main one's.
    """
    checkpoint = folder.latest(say) if is_main_process() else None
    step = from_main_process(None if checkpoint is None else checkpoint.step, device)
    if not is_main_process() and step is not None:
        checkpoint = folder.latest(say)
    seen = from_all_processes(None if checkpoint is None else checkpoint.step)
    blind = [number for number, found in enumerate(seen) if found != step]
    if blind:
        raise CheckpointError(
            f"process {blind[0]} does not see the checkpoint of step {step} in '{folder.path}', "
            f"which process 0 does: pass a ckpt_path on a disk that all machines share."
        )
    return checkpoint


def _on_host(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf
