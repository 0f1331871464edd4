"""A trained net as one file that runs without its Python code, compared with the net."""

from __future__ import annotations

from hotloop.export.exporting import Exported, export_net

__all__ = ["Exported", "export_net"]
