"""A run as a page: one HTML file that needs nothing beside it."""

from __future__ import annotations

from hotloop.reporting.run_report import make_run_report
from hotloop.reporting.settings import describe_settings

__all__ = ["describe_settings", "make_run_report"]
