"""Reading IDX files, the format of MNIST and its relatives.

The format (Y. LeCun, http://yann.lecun.com/exdb/mnist/, "The IDX file format"): two zero bytes,
one byte for the type (8 is unsigned byte), one for the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values in C order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hotloop.errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read a file of unsigned bytes; a name that ends in .gz is decompressed.

    Args:
        path: the file.
        shape: what the file has to hold.

    Returns:
        uint8 of ``shape``, writable.

    Raises:
        DataError: the file cannot be read, is truncated, or holds something else.
    """
    content = _read_whole(path)
    header_bytes = 4 + 4 * len(shape)
    magic = bytes([0, 0, _UNSIGNED_BYTE, len(shape)])
    if content[:4] != magic:
        raise DataError(
            f"{path} starts with the bytes {content[:4].hex(' ') or '(none)'}, expected "
            f"{magic.hex(' ')} of an IDX file of unsigned bytes in {len(shape)} dimensions: "
            f"replace the file."
        )
    if len(content) < header_bytes:
        raise DataError(
            f"{path} is truncated: found {len(content)} bytes, expected {header_bytes} in the "
            f"header alone: replace the file."
        )
    found = struct.unpack(f">{len(shape)}I", content[4:header_bytes])
    if found != shape:
        raise DataError(
            f"{path} holds an array of shape {found}, expected {shape}: replace the file."
        )
    expected_bytes = header_bytes + math.prod(shape)
    if len(content) != expected_bytes:
        state = "is truncated" if len(content) < expected_bytes else "is too long"
        raise DataError(
            f"{path} {state}: found {len(content):,} bytes, expected {expected_bytes:,}: replace "
            f"the file."
        )
    # the copy is writable, as torch.from_numpy wants it; the bytes are not
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(shape).copy()


def _read_whole(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): expected an IDX file; make it "
            f"readable or replace it."
        ) from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise DataError(
            f"{path} cannot be decompressed ({error}): found {len(content):,} bytes that are not "
            f"one whole gzip stream, expected a gzipped IDX file; replace the file."
        ) from error
