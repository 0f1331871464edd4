"""Fetching files from mirrors: checked, and never half there."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_CHUNK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 30.0


class DownloadFailedError(Exception):
    """No mirror gave a file.

    Attributes:
        reasons: one for each address that was tried.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


def fetch_from_mirrors(
    name: str, md5: str, mirrors: Sequence[str], folder: Path, *, timeout: float = _TIMEOUT_SECONDS
) -> Path:
    """Download a file from the first mirror that gives it with the right checksum.

    The file appears under its name only when it is whole and checked; several processes may
    fetch it at once.

    Args:
        name: of the file, on the mirrors and in ``folder``.
        md5: of its content, in hexadecimal.
        mirrors: addresses, each with a "/" at its end, in the order to try.
        folder: where to put it; has to exist.
        timeout: seconds to wait for the server at a time.

    Returns:
        The file.

    Raises:
        DownloadFailedError: no mirror gave it, or it cannot be written.
    """
    reasons = []
    for mirror in mirrors:
        url = mirror + name
        partial = folder / f".{name}.{uuid.uuid4().hex}.part"
        try:
            wrong = _fetch(url, md5, partial, timeout)
            if wrong is None:
                os.replace(partial, folder / name)
                return folder / name
        except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
            if isinstance(error, HTTPError):
                error.close()  # it holds the connection
            wrong = str(error) or type(error).__name__
        finally:
            partial.unlink(missing_ok=True)
        reasons.append(f"{url}: {wrong}")
    raise DownloadFailedError(reasons)


def _fetch(url: str, md5: str, path: Path, timeout: float) -> str | None:
    """Download to ``path``; return what is wrong with what came, None when it is right."""
    from tqdm import tqdm

    request = Request(url, headers={"User-Agent": "hotloop"})
    digest = hashlib.md5(usedforsecurity=False)
    found_bytes = 0
    with urlopen(request, timeout=timeout) as response, open(path, "xb") as file:
        length = response.headers.get("Content-Length", "")
        expected_bytes = int(length) if length.isdecimal() else None
        name = url.rsplit("/", 1)[-1]
        with tqdm(
            total=expected_bytes, desc=name, unit="B", unit_scale=True, leave=False
        ) as progress:
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                found_bytes += len(chunk)
                progress.update(len(chunk))
    # a connection that ends early is not an error to urllib when it is read in pieces
    if expected_bytes is not None and found_bytes != expected_bytes:
        return f"ended after {found_bytes:,} of {expected_bytes:,} bytes"
    if digest.hexdigest() != md5:
        return f"its MD5 is {digest.hexdigest()}, expected {md5}"
    return None
