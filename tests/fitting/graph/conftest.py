"""No graph is made before torch 2.10 (tests/fitting/test_older_torch.py): all is eager there."""

from __future__ import annotations

from builders import MAKES_GRAPHS

collect_ignore_glob = [] if MAKES_GRAPHS else ["*.py"]
