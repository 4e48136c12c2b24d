"""Built-in trackers: none yet."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import Tracker

TRACKERS: list[type[Tracker[Any]]] = []
