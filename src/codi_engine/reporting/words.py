"""Numbers and names as the report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

#: metrics in words; others go by their name
METRICS = {
    "normalized_effect": "normalised effect (0: as the unedited run, 1: the other prompt's answer restored)",
    "kl": "KL divergence from the unedited run (nats)",
    "logit_diff": "logit difference: right answer's first token minus the other's",
    "flip": "share of answers that changed",
    "accuracy": "share of answers that are right",
    "cross_entropy": "cross-entropy (nats)",
    "prob": "probability of the right answer",
    "perplexity": "perplexity of the right answer",
}


def number(value: Any, digits: int = 3) -> str:
    """Return a number to so many significant digits with a true minus sign; – where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value:.{max(digits - 1 - math.floor(math.log10(size)), 0)}f}".replace("-", "−")


def said(value: Any) -> str:
    """Return an option's value: yes and no, lists with commas, pairs of conditions as ``a − b``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k} {said(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        pairs = bool(value) and all(isinstance(v, (list, tuple)) and len(v) == 2 for v in value)
        return ", ".join(f"{said(v[0])} − {said(v[1])}" if pairs else said(v) for v in value)
    return str(value)


def short(value: float) -> str:
    """Return a number as it fits into a cell of a heatmap: two decimals below ten."""
    if math.isnan(value):
        return ""
    text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:.3g}"
    return ("0" if float(text) == 0 else text).replace("-", "−")


def count(value: int) -> str:
    """Return a whole number with thousands set apart."""
    return f"{value:,}"


def listing(parts: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def plural(number: int, word: str) -> str:
    """Return ``1 layer``, ``1,200 layers``."""
    return f"{number:,} {word if number == 1 else word + 's'}"


def tick(label: Any) -> str:
    """Return an axis label: the set 0+1+2+3 is 0–3, a whole number has no decimals."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    parts = str(label).split("+")
    whole = len(parts) > 2 and all(p.isdigit() for p in parts) and int(parts[-1]) - int(parts[0]) == len(parts) - 1
    return f"{parts[0]}–{parts[-1]}" if whole else str(label)
