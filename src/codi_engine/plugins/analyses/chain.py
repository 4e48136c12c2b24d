"""Intermediate results of an annotated solution: ``<<6*2=12>> <<12+7=19>>`` holds 12 and 19."""

from __future__ import annotations

from codi_engine.core.solutions.algebra import parse_solution


def results(text: object) -> list[float]:
    """Return the results of a solution's calculations in order; empty where there is no annotation."""
    solution = parse_solution(text) if isinstance(text, str) else None
    return [] if solution is None else list(solution.values)
