"""Built-in analyses."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import Analysis

ANALYSES: list[type[Analysis[Any]]] = []
