"""The report of a run: one self-contained HTML file, a page of a research journal, and both served while the run goes on."""

from codi_engine.reporting.page import SECTIONS, render_page, report
from codi_engine.reporting.section import Section

__all__ = ["SECTIONS", "Section", "render_page", "report"]
