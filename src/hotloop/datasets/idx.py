"""The IDX format of the MNIST files: http://yann.lecun.com/exdb/mnist/ describes it.

Two zero bytes, a code of the value's type, the number of dimensions, the dimensions as big-endian
32-bit numbers, then the values.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import torch

from hotloop.errors import DataError

_UINT8 = 0x08


def read_idx(path: str | os.PathLike[str], num_dims: int) -> torch.Tensor:
    """Read an IDX file of unsigned bytes, compressed with gzip or not.

    Args:
        path: the file.
        num_dims: the dimensions it must have.

    Returns:
        uint8, of the shape that the file states.

    Raises:
        DataError: the file is damaged, cut off, or something else.
    """
    import numpy as np

    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"'{path}' is damaged ({error}): delete it and fetch it again."
            ) from error
    header_size = 4 + 4 * num_dims
    if len(content) < header_size or content[:4] != bytes((0, 0, _UINT8, num_dims)):
        raise DataError(
            f"'{path}' is no IDX file of unsigned bytes in {num_dims} dimensions (it begins with "
            f"{content[:4].hex(' ')}): delete it and fetch it again."
        )
    shape = struct.unpack(f">{num_dims}I", content[4:header_size])
    expected = header_size + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"'{path}' has {len(content):,} bytes where its header {shape} makes {expected:,}: "
            f"delete it and fetch it again."
        )
    values = np.frombuffer(content, np.uint8, offset=header_size)
    return torch.from_numpy(values.reshape(shape).copy())  # copy: torch wants writable memory
