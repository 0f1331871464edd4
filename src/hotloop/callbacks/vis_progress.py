"""torchkeras' progress callback; hotloop's own display does its work."""

from __future__ import annotations

from hotloop.callbacks.base import Callback


class VisProgress(Callback):
    """Accepted so that torchkeras' scripts run; the bar is part of ``fit`` already."""

    only_main_process = True
