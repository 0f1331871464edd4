"""Checksums inside files of weights: made when one is written, compared when it is read."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hotloop.errors import CheckpointError

METADATA_NAME = "crc32"  # in the header of a safetensors file
_CHUNK_BYTES = 1 << 20


def checksum_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the CRC-32 of tensors on the CPU, with their names, dtypes and shapes, as hex."""
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        data: Any = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        value = zlib.crc32(data, value)
    return f"{value:08x}"


def check_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Compare what was read from a file with the checksum in its header.

    Returns:
        Whether there is one; other programs write none.

    Raises:
        CheckpointError: it is that of other bytes.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get(METADATA_NAME)
    if expected is not None and expected != checksum_of(tensors):
        raise CheckpointError("its checksum does not fit")
    return expected is not None


def check_zip(path: Path) -> bool:
    """Compare a file of ``torch.save`` with the checksums in it, which torch's reading leaves out.

    Returns:
        Whether there are any: torch's older form has none, and
        ``torch.serialization.set_crc32_options(False)`` writes zeros.

    Raises:
        CheckpointError: one is that of other bytes, or the file is no whole zip.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.CRC]
            for entry in entries:
                with archive.open(entry) as file:
                    while file.read(_CHUNK_BYTES):  # compares at the entry's end
                        continue
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"its checksums do not fit: {error}") from error
    return bool(entries)
