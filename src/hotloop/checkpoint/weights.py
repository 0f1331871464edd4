"""The weights of a bare net as a plain file, in ``torch.save`` or safetensors form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hotloop.checkpoint.checksums import (
    METADATA_NAME,
    check_safetensors,
    check_zip,
    checksum_of,
)
from hotloop.checkpoint.files import write_atomically
from hotloop.errors import CheckpointError, first_line

# What wrappers (DataParallel, DistributedDataParallel, torch.compile) put into the names.
_WRAPPERS = ("module", "_orig_mod")


def bare_state_dict(net: nn.Module) -> dict[str, Any]:
    """Return the net's state dict with the names of the bare net, whatever wraps it or a part.

    What a net of the user's own calls ``module`` keeps that name.
    """
    wrappers = [
        f"{name}.{inner}." if name else f"{inner}."
        for name, part in net.named_modules()
        if (inner := _inner_name(part)) is not None
    ]
    state = {}
    for name, value in net.state_dict().items():
        bare = name
        for wrapper in sorted(wrappers, key=len, reverse=True):  # the innermost first
            if bare.startswith(wrapper):
                outside = wrapper.rstrip(".").rpartition(".")[0]
                rest = bare.removeprefix(wrapper)
                bare = f"{outside}.{rest}" if outside else rest
        state[bare] = value
    return state


def save_weights(net_or_state: nn.Module | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Save the weights of the bare net, atomically.

    Args:
        net_or_state: the net, or its state dict.
        path: where; a name ending in ``.safetensors`` gets that format, any other what
            ``torch.load(path, weights_only=True)`` reads.

    Raises:
        CheckpointError: the file cannot be written, or safetensors cannot hold an entry.
    """
    state: Mapping[str, Any]
    state = bare_state_dict(net_or_state) if isinstance(net_or_state, nn.Module) else net_or_state
    if Path(path).suffix == ".safetensors":
        data = _to_safetensors(state, path)
        write_atomically(path, lambda file: file.write(data))
    else:
        write_atomically(path, lambda file: torch.save(dict(state), file))


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read weights to the CPU, as they are named in the file.

    Nothing but tensors and plain values is ever unpickled, and nothing is returned whose checksum
    does not fit.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds no weights.
    """
    return read_checked(path)[0]


def read_checked(path: str | os.PathLike[str]) -> tuple[dict[str, Any], bool]:
    """Read weights as ``read_weights`` does; tell also whether the file has checksums.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds no weights.
    """
    target = Path(path)
    if not target.is_file():
        found = "is a folder" if target.is_dir() else "does not exist"
        raise CheckpointError(
            f"checkpoint '{target}' {found}: pass the path of a file that fit or save_ckpt wrote."
        )
    try:
        if target.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(target)
            has_sums = check_safetensors(target, state)
        else:
            has_sums = check_zip(target)
            state = torch.load(target, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint '{target}' cannot be read as weights ({first_line(error)}): it is "
            f"damaged or holds other things than tensors; use a file that fit or save_ckpt wrote."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"checkpoint '{target}' holds a {type(state).__name__}, not a state dict: "
            f"save net.state_dict() or use save_ckpt."
        )
    return dict(state), has_sums


def load_weights(net: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights into the net, where it is; the net is unchanged when they do not fit.

    Names may carry the prefixes of wrappers (``module.``, ``_orig_mod.``) in the file or the net.

    Raises:
        CheckpointError: the file cannot be read, or its names or shapes are another net's; the
            message names the keys.
    """
    own = net.state_dict()
    state, names = _match_names(read_weights(path), own)
    complaints = []
    missing = [name for name in names if name not in state]
    unexpected = [name for name in state if name not in names]
    mismatched = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[names[name]].shape)}"
        for name in names
        if name in state
        and isinstance(own[names[name]], torch.Tensor)
        and isinstance(state[name], torch.Tensor)
        and state[name].shape != own[names[name]].shape
    ]
    if missing:
        complaints.append(f"it lacks {_shorten(missing)}")
    if unexpected:
        complaints.append(f"it has unknown {_shorten(unexpected)}")
    if mismatched:
        complaints.append(f"it has {_shorten(mismatched)}")
    if complaints:
        raise CheckpointError(
            f"checkpoint '{path}' was saved from another model: {'; '.join(complaints)}; "
            f"build the net as it was when the checkpoint was written."
        )
    net.load_state_dict({names[name]: value for name, value in state.items()})


def _to_safetensors(state: Mapping[str, Any], path: str | os.PathLike[str]) -> bytes:
    from safetensors.torch import save

    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(
            f"'{path}' cannot hold {_shorten(others)}, which are no tensors: "
            f"pass a ckpt_path that does not end in .safetensors."
        )
    # clone: safetensors refuses tensors that share memory (tied weights), a copy of each is right
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return bytes(save(tensors, {METADATA_NAME: checksum_of(tensors)}))


def _match_names(
    state: dict[str, Any], own: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the file's entries and the net's names, both by the same names.

    As they are where they agree; else without what wrappers put in, where that is unambiguous.
    """
    names = {_without_wrappers(name): name for name in own}
    bare = {_without_wrappers(name): value for name, value in state.items()}
    if state.keys() == own.keys() or len(names) < len(own) or len(bare) < len(state):
        return state, {name: name for name in own}
    return bare, names


def _inner_name(part: nn.Module) -> str | None:
    """Return what a wrapper calls the module that it wraps; None where it is none."""
    if isinstance(part, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    return "_orig_mod" if "_orig_mod" in part._modules else None


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _shorten(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
