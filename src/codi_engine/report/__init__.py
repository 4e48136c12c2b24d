"""The report of a run: one self-contained HTML file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from codi_engine.report.page import SECTIONS, render_page, report
from codi_engine.report.section import Section

if TYPE_CHECKING:
    from codi_engine.core.results import Run

__all__ = ["SECTIONS", "Section", "render_page", "report"]


class _Package(ModuleType):
    """``codi_engine.report`` is this package and, called, what it is for: ``codi_engine.report("runs/demo")``."""

    def __call__(self, run: str | Path | Run, output: str | Path | None = None) -> Path:
        return report(run, output)


sys.modules[__name__].__class__ = _Package
