"""The making of a graph: it leaves no trace, and where it fails the steps stay eager."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from hotloop.data.random_state import RandomStates
from hotloop.errors import first_line
from hotloop.fitting.graph.declined import DeclinedError


@contextlib.contextmanager
def attempt() -> Iterator[None]:
    """Make a graph inside the block, after which random states are as they were.

    Raises:
        DeclinedError: it cannot be made, or what it computes would be of random numbers drawn here.
    """
    random_states = RandomStates.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's insides; forward's were heard before
            yield
        # Dynamo takes numpy's for torch's, and what was drawn here is a constant of the graph
        drew = [name for name in random_states.moved() if name != "torch"]
        if drew:
            raise DeclinedError(f"forward or loss draws random numbers of {' and '.join(drew)}")
    except DeclinedError:
        raise
    except torch.OutOfMemoryError as error:
        raise DeclinedError("memory runs out while a graph is made") from error
    except Exception as error:
        raise DeclinedError(f"a graph cannot be made: {first_line(error)}") from error
    finally:
        random_states.restore()
