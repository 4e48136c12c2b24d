"""interim"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Solution:
    steps: tuple[tuple[str, float], ...]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(v for _, v in self.steps)

    def with_result(self, step: int, value: float) -> float | None:
        values = list(self.values)
        values[step] = value
        for later in range(step + 1, len(values)):
            old = self.values[later - 1]
            text = self.steps[later][0]
            head = f"{old:g}"
            if not text.startswith(head):
                return None
            values[later] = eval(f"({values[later - 1]})" + text[len(head) :])
        return float(values[-1])


def parse_solution(text: str, question: str | None = None) -> Solution | None:
    found = re.findall(r"<<([^=>]*)=([^>]*)>>", text)
    return Solution(tuple((a, float(b)) for a, b in found)) if found else None
