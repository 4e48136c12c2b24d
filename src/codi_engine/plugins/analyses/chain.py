"""Intermediate results of an annotated solution: ``<<6*2=12>> <<12+7=19>>`` holds 12 and 19."""

from __future__ import annotations

import math
import re

_RESULT = re.compile(r"=\s*(-?)\s*\$?\s*([\d,]*\.?\d+)\s*>>")


def results(text: object) -> list[float]:
    """Return the results of a solution's calculations in order; empty where there is no annotation."""
    if not isinstance(text, str):
        return []
    found = [float(sign + digits.replace(",", "")) for sign, digits in _RESULT.findall(text)]
    return [v for v in found if math.isfinite(v)]
