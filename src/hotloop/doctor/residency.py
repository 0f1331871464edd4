"""Would ``fit`` serve a loader's data from memory, and what would have to be written for that?"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate

from hotloop.data.budget import DEFAULT_SHARE, chosen_share, resident_budget
from hotloop.data.purity import find_state, holds_stream, reason_against
from hotloop.doctor.reading import Reading
from hotloop.fitting.settings import FitSettings
from hotloop.nested import count_samples

_LARGE_SHARE = 0.9  # of the free memory, the largest that is advised


@dataclass(frozen=True)
class WayToMemory:
    """What to write so that data is served from memory.

    Attributes:
        argument: the text to write.
        numbers: what becomes of the results: "same", "rounding" or "changed".
    """

    argument: str
    numbers: str


def reason_not_resident(
    loader: Any, reading: Reading, device: torch.device, settings: FitSettings
) -> str | None:
    """Return why ``fit`` would not serve a loader's data from memory; None where it would."""
    if settings.exact:
        return "exact=True reads data as it is passed"
    if chosen_share(settings.resident_budget) == 0:
        return "resident_budget is 0"
    reason = reason_against(loader, settings.epochs)
    if reason is not None:
        return reason
    if reading.drew:
        return f"reading samples draws random numbers ({', '.join(reading.drew)})"
    if reading.varies:
        return "a sample read twice is not the same"
    return _over_budget(loader, reading, device, chosen_share(settings.resident_budget))


def way_to_memory(
    loader: Any, reading: Reading, device: torch.device, settings: FitSettings
) -> WayToMemory | None:
    """Return what to write so that ``fit`` serves a loader's data from memory.

    None where nothing known would do: the data is too large, or read in a form that is unknown.
    """
    written, numbers = [], "same"
    bare = copy.copy(loader)
    if bare.collate_fn is not default_collate:
        bare.collate_fn, numbers = default_collate, "changed"
        written.append("DataLoader(...) without collate_fn")
    if bare.num_workers and bare.worker_init_fn is not None:
        bare.worker_init_fn, numbers = None, "changed"
        written.append("DataLoader(...) without worker_init_fn")
    held = find_state(loader.dataset)
    reason = reason_against(bare, settings.epochs)
    if reason is not None and (held is None or held not in reason or holds_stream(loader.dataset)):
        return None
    if reading.drew or reading.varies or held is not None:
        numbers = "changed"
        written.append("the random part in fit(batch_transform=...)")
    own = chosen_share(settings.resident_budget)
    shares = [
        share
        for share in (own, DEFAULT_SHARE, _LARGE_SHARE)
        if share and _over_budget(loader, reading, device, share) is None
    ]
    if not shares:
        return None
    arguments = []
    if settings.exact:
        arguments.append("exact=False")
        numbers = "rounding" if numbers == "same" else numbers
    if shares[0] != own:
        arguments.append(f"resident_budget={shares[0]}")
    if arguments:
        written.append(f"fit({', '.join(arguments)})")
    return WayToMemory(", ".join(written), numbers)


def _over_budget(loader: Any, reading: Reading, device: torch.device, share: float) -> str | None:
    """Return that a loader's data takes more than a share of the free memory, if so."""
    num_samples = max(count_samples(reading.batches[0]), 1)
    num_bytes = reading.batch_bytes * len(loader.dataset) // num_samples
    budget = resident_budget(device, share)
    if num_bytes <= budget:
        return None
    return (
        f"it needs about {num_bytes / 2**20:,.0f} MiB and the budget is {budget / 2**20:,.0f} MiB"
    )
