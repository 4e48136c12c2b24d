"""Effect maps as plain text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 96


def condition_grids(table: pd.DataFrame, axes: Sequence[str], metric: str) -> list[str]:
    """Return one small grid per condition: layers down, steps or positions across; ``*`` marks what survives correction."""
    lines: list[str] = []
    for condition, part in table.groupby("condition", sort=False):
        used = [a for a in axes if part[a].notna().any() and part[a].nunique() > 1]
        if "by" in part and part["by"].nunique() > 1:
            used = ["by", *used]
        over = " × ".join(u if u != "by" else "stratum" for u in used)
        lines += ["", f"{condition}: mean {metric}" + (f" by {over}" if used else "")]
        if not used:
            lines.append(f"  {_cell(part.iloc[0])}")
        elif len(used) == 1:
            lines += _grid(part.assign(_row=""), "_row", used[0])
        else:
            lines += _grid(part, used[0], used[-1]) if len(used) == 2 else _grid(_mean_over(part, used), used[0], used[-1])
    return lines[1:]


def place_grid(table: pd.DataFrame, column: str, down: str, across: str) -> list[str]:
    """Return one grid of a column of a table with one row per place; ``significant``, where there is one, is marked ``*``."""
    import pandas as pd

    part = pd.DataFrame({"mean": table[column].astype(float), "significant": table["significant"] if "significant" in table else False})
    for axis in (down, across):
        part[axis if table[axis].notna().any() else "_row"] = table[axis] if table[axis].notna().any() else ""
    part["_row"] = "" if "_row" not in part else part["_row"]
    return _grid(part, down if down in part else "_row", across if across in part else "_row")


def _mean_over(part: pd.DataFrame, used: Sequence[str]) -> pd.DataFrame:
    mean = part.groupby([used[0], used[-1]], sort=False, dropna=False).agg(mean=("mean", "mean"), significant=("significant", "any"))
    return mean.reset_index()


def _grid(part: pd.DataFrame, down: str, across: str) -> list[str]:
    columns = list(dict.fromkeys(part[across]))
    rows = list(dict.fromkeys(part[down]))
    if down == "layer":
        rows = rows[::-1]
    cells = {(r[down], r[across]): _cell(r) for _, r in part.iterrows()}
    width = max(7, *(len(str(c)) + 1 for c in columns))
    shown = max((WIDTH - 12) // width, 1)
    lines = []
    for start in range(0, len(columns), shown):
        some = columns[start : start + shown]
        lines.append(f"{across:>10} " + "".join(f"{c!s:>{width}}" for c in some))
        for r in rows:
            head = "" if down == "_row" else str(r) if down == "by" else f"{down} {r}"
            lines.append(f"{head:>10} " + "".join(f"{cells.get((r, c), '·'):>{width}}" for c in some))
    return lines


def _cell(row: Any) -> str:
    value = row["mean"]
    if value != value:
        return "–"
    text = two_digits(value) if abs(value) < 100 else f"{value:.3g}"
    return text + ("*" if row["significant"] else " ")


def two_digits(value: float) -> str:
    """Return a value with two digits; what rounds to zero has no sign."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text
