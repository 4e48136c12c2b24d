"""What ``geometry`` says in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {"change": "step change ‖c_{k+1} − c_k‖ / ‖c_k‖", "direction": "cosine of each move with the one before it"}


def summary(tables: Mapping[str, pd.DataFrame], site: str, q: float) -> str:
    """Return one line of numbers per group and measure, what differs by correctness, and whether the steps have collapsed."""
    steps, pairs, dimension, contrast = (tables[n] for n in ("steps", "pairs", "dimension", "contrast"))
    lines = [f"{site}: {int(steps['n'].max())} examples; columns: the state that a move leads to (k: out of step k)"]
    for measure, name in _NAMES.items():
        part = steps[steps["measure"] == measure]
        lines += ["", name, " " * 18 + "".join(f"{s:>8}" for s in dict.fromkeys(part["step"]))]
        lines += _rows(part, "mean", 2)
    lines += ["", "effective dimension (participation ratio)", " " * 18 + "".join(f"{_state(s):>8}" for s in dict.fromkeys(dimension["step"]))]
    lines += _rows(dimension, "dimension", 1)
    smallest = int(dimension["at_n"].iloc[0])
    lines.append(f"it grows with n: compare groups by equal_n, the same at n = {smallest} for all")
    everywhere = pairs[pairs["group"] == "all"]
    nearest = everywhere.iloc[int(everywhere["cosine"].to_numpy().argmax())]
    lines += [
        "",
        f"cosine between steps: {everywhere['cosine'].min():.2f} to {nearest['cosine']:.2f} (steps {_state(nearest['step'])} and {_state(nearest['other'])})",
    ]
    if len(contrast):
        found = contrast[contrast["q"] < q]
        lines.append(f"correct against wrong answers: {len(found)} of {int(contrast['p'].notna().sum())} tests with q < {q:g} (BH)")
        for _, row in found.iterrows():
            change = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], g = {row['hedges_g']:+.2f}"
            lines.append(f"  {row['measure']} to {_state(row['step'])}: {change}")
    else:
        lines.append("no comparison by correctness: it needs the metric accuracy, and five right and five wrong answers")
    return "\n".join(lines)


def _rows(table: pd.DataFrame, column: str, digits: int) -> list[str]:
    """Return one line per group."""
    lines = []
    for group, part in table.groupby("group", sort=False):
        name = f"{group} (n = {int(part['n'].max())})"
        lines.append(f"{name:<18}" + "".join(f"{v:>8.{digits}f}" for v in part[column]))
    return lines


def _state(step: float) -> str:
    return "bot" if step < 0 else str(int(step))
