"""Tell an optimizer's update that ran out of memory before it began from one that is half done."""

from __future__ import annotations

import traceback
from typing import Any

import torch

# these make the state of a whole group before they change anything of it
_STATE_FIRST = (torch.optim.Adam, torch.optim.AdamW)


def forget_new_state(optimizer: Any, error: BaseException) -> bool:
    """Forget the state that a failed first update has made, where it changed nothing else.

    Args:
        optimizer: as it is after the failure.
        error: what the update raised.

    Returns:
        Whether the update can be repeated: Adam's or AdamW's, which failed while the state of its
        first group was being made. Fused kernels leave no trace in a tensor's version, so that the
        place of the failure is all there is to tell by.
    """
    if type(optimizer) not in _STATE_FIRST or not _failed_in_first_group(optimizer, error):
        return False
    for parameter, state in list(optimizer.state.items()):
        if "exp_avg_sq" not in state or not float(state["step"]):
            del optimizer.state[parameter]
    return True


def _failed_in_first_group(optimizer: torch.optim.Optimizer, error: BaseException) -> bool:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_init_group" and frame.f_locals.get("self") is optimizer:
            return frame.f_locals.get("group") is optimizer.param_groups[0]
    return False
