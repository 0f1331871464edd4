"""Where does the time go, and what to do: short measured trials on copies."""

from __future__ import annotations

from hotloop.doctor.examination import diagnose
from hotloop.doctor.findings import Change, Diagnosis, Mistake

__all__ = ["Change", "Diagnosis", "Mistake", "diagnose"]
