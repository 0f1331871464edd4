"""Lines on standard output, whatever its encoding."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """Return a text as standard output can take it: what its encoding lacks is escaped.

    A file or pipe on Windows has the system's old encoding, cp1252 or cp936 say, and a name of a
    metric or a folder that is not in it must not end a training.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
