"""Why data stays on its loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hotloop.memory import is_out_of_memory, shortage


class Declined(Exception):  # noqa: N818 - a decision, not an error
    """The data stays on its loader; the text says why and what would change that."""


def refuse_over_budget(num_bytes: int, needed: int, budget: int) -> None:
    """Leave the data on its loader where it needs more memory than it may have.

    Args:
        num_bytes: of the data.
        needed: of them, those that are not there yet.
        budget: the most there may be of those.

    Raises:
        Declined: it needs more.
    """
    if needed > budget:
        raise Declined(
            f"it needs {num_bytes / 2**20:,.0f} MiB and the budget is {budget / 2**20:,.0f} MiB; "
            f"raise resident_budget to have it in memory"
        )


@contextlib.contextmanager
def declining_without_memory() -> Iterator[None]:
    """Leave the data on its loader where there is less memory than its budget was made of."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Declined(f"memory ran out while it was put there ({shortage(error)})") from None
