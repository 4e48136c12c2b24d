"""The browser of single cells: columns encoded for the page's script, and a sample where there are too many."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.planning.controls import is_control
from codi_engine.core.runs.results import BASELINE
from codi_engine.reporting.facts import Facts
from codi_engine.reporting.safe import json_text, visible
from codi_engine.reporting.section import Section, render
from codi_engine.reporting.words import count, tick

if TYPE_CHECKING:
    import pandas as pd

#: cells and bytes of the page's data above which a sample is shown
LIMIT, BYTES = 200_000, 40_000_000
#: cells that are in the page as plain text, for print and without a script
EXCERPT = 12
#: labels from which an axis of numbers is filtered by a range instead of a list
_RANGE = 40
_FIELD = 60
CHANGED, BROKEN, MENDED, RIGHT, WRONG = 1, 2, 4, 8, 16


def cells(facts: Facts, limit: int = LIMIT, most: int = BYTES) -> Section | None:
    """Return the browser; None for a run without cells."""
    frame = facts.cells.copy()
    if frame.empty or "condition" not in frame:
        return None
    frame["slot"] = facts.run.slots
    frame = frame.iloc[np.argsort(np.array([_turn(c) for c in frame["condition"]]), kind="stable")].reset_index(drop=True)
    frame["flags"], frame["base"] = compared(frame)
    shown, data = _fitted(facts, frame, limit, most)
    said = ""
    if len(shown) < len(frame):
        said = f"A sample of {count(len(shown))} of {count(len(frame))} cells: the same share of every condition and place, drawn evenly over the examples."
    questions = facts.problem if not facts.questions else ""
    html = render("cells.html", data=json_text(data), said=said, problem=questions, total=len(shown), excerpt=excerpt(facts, frame))
    return Section("cells", "Single cells", html)


def _turn(condition: Any) -> int:
    """Edits first, their controls next, what is unedited last."""
    return 2 if condition == BASELINE else 1 if is_control(condition) else 0


def _fitted(facts: Facts, frame: pd.DataFrame, limit: int, most: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return as many cells as fit, and their encoding."""
    shown = sampled(frame, facts.places, limit)
    data = encode(facts, shown)
    size = len(json_text(data).encode())
    while size > most and len(shown) > 100:
        shown = sampled(frame, facts.places, max(int(len(shown) * 0.9 * most / size), 100))
        data = encode(facts, shown)
        size = len(json_text(data).encode())
    return shown, data


def sampled(frame: pd.DataFrame, places: Sequence[str], limit: int) -> pd.DataFrame:
    """Return at most about ``limit`` cells: of every condition and place the same share, evenly spaced, at least one."""
    if len(frame) <= limit:
        return frame
    groups = frame.groupby(["condition", *[p for p in places if p in frame]], dropna=False, sort=False, observed=True)
    rank, size = groups.cumcount().to_numpy(), groups["slot"].transform("size").to_numpy()
    share = limit / len(frame)
    kept = np.floor((rank + 1) * share) > np.floor(rank * share)
    kept |= (rank == 0) & (np.floor(size * share) < 1)
    out: pd.DataFrame = frame[kept]
    return out


# ------------------------------------------------------------------------------------------ edited and unedited


def compared(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return each cell's flags (changed, right → wrong, wrong → right, right, wrong) and the slot of its unedited cell (−1: none).

    The unedited cell is that of the same example, variant and trial. Answers differ where their numbers do, or, where neither has
    a number, their texts.
    """
    import pandas as pd

    keys = [k for k in ("example", "variant", "trial") if k in frame]
    base = frame[frame["condition"] == BASELINE]
    base = base[~base.duplicated(keys, keep=False)] if keys else base.iloc[:0]
    at = pd.MultiIndex.from_frame(frame[keys].astype(str)) if keys else pd.Index(range(len(frame)))
    of = pd.Series(np.arange(len(base)), index=pd.MultiIndex.from_frame(base[keys].astype(str)) if keys else None)
    where = of.reindex(at).to_numpy(float) if len(base) else np.full(len(frame), np.nan)
    known = np.isfinite(where)
    index = np.where(known, where, 0).astype(int)
    flags = np.zeros(len(frame), np.int64)
    right = frame["accuracy"].to_numpy(float) if "accuracy" in frame else np.full(len(frame), np.nan)
    flags[right == 1] |= RIGHT
    flags[right == 0] |= WRONG
    if not len(base):
        return flags, np.full(len(frame), -1)
    edited = known & (frame["condition"] != BASELINE).to_numpy()
    flags[edited & _differs(frame, base, index)] |= CHANGED
    before = base["accuracy"].to_numpy(float)[index] if "accuracy" in base else np.full(len(index), np.nan)
    flags[edited & (before == 1) & (right == 0)] |= BROKEN
    flags[edited & (before == 0) & (right == 1)] |= MENDED
    return flags, np.where(edited, base["slot"].to_numpy()[index], -1)


def _differs(frame: pd.DataFrame, base: pd.DataFrame, index: np.ndarray) -> np.ndarray:
    if "answer" not in frame:
        return np.zeros(len(frame), bool)
    now, then = frame["answer"].to_numpy(float), base["answer"].to_numpy(float)[index]
    neither = np.isnan(now) & np.isnan(then)
    out = (now != then) & ~neither
    if "text" in frame and neither.any():
        texts = frame["text"].to_numpy(object), base["text"].to_numpy(object)[index]
        out[neither] = texts[0][neither] != texts[1][neither]
    return np.asarray(out, bool)


# ------------------------------------------------------------------------------------------------ encoding


def encode(facts: Facts, frame: pd.DataFrame) -> dict[str, Any]:
    """Return columns for the script: labels with codes, numbers as base64 of little-endian arrays, texts once each."""
    places = {s: i for i, s in enumerate(frame["slot"])}
    columns = [_labelled(frame, a, "axis") for a in facts.axes]
    columns += [_labelled(frame, f, "field") for f in facts.fields if f in frame]
    columns += [_numeric(frame, m) for m in facts.run.metrics if m in frame]
    texts, answers = _texts(frame["text"] if "text" in frame else None, len(frame))
    questions, asked = _questions(facts, frame)
    return {
        "n": len(frame),
        "columns": columns,
        "slot": packed(frame["slot"].to_numpy()),
        "base": packed(np.array([places.get(s, -1) for s in frame["base"]]) + 1),  # 0: no unedited cell in the page
        "flags": packed(frame["flags"].to_numpy()),
        "answer": _numeric(frame, "answer") if "answer" in frame else None,
        "texts": texts, "text": answers, "questions": questions, "question": asked,
        "path": str(facts.run.path),
    }  # fmt: skip


def packed(values: np.ndarray) -> dict[str, str]:
    """Return whole numbers ≥ 0 in the narrowest type, as ``{t: u1 | u2 | u4, b: base64}``."""
    top = int(values.max()) if len(values) else 0
    kind = "u1" if top < 1 << 8 else "u2" if top < 1 << 16 else "u4"
    return {"t": kind, "b": base64.b64encode(values.astype(f"<{kind}").tobytes()).decode()}


def _labelled(frame: pd.DataFrame, name: str, kind: str) -> dict[str, Any]:
    """Return a column of labels; code 0 is missing. ``numeric`` labels are ranges in the page where there are many."""
    values = frame[name]
    known = values.notna().to_numpy()
    labels = list(dict.fromkeys(values[known]))
    numeric = bool(labels) and all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in labels)
    if numeric:
        labels = sorted(labels)
    code = {v: i + 1 for i, v in enumerate(labels)}
    codes = np.array([code[v] if k else 0 for v, k in zip(values, known, strict=True)], np.int64)
    shown = [float(v) if numeric else visible(tick(v)) for v in labels]
    filtered = kind == "axis" or len(labels) <= _FIELD
    return {
        "name": name,
        "kind": kind,
        "numeric": numeric,
        "range": numeric and len(labels) > _RANGE,
        "filter": filtered,
        "labels": shown,
        "codes": packed(codes),
    }


def _numeric(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """Return a column of numbers: codes of the distinct ones where that is smaller, else all of them as float64."""
    values = frame[name].to_numpy(float)
    distinct, codes = np.unique(values, return_inverse=True)  # NaN is one value, and the last
    if len(distinct) < len(values) / 4 and len(distinct) < 1 << 16:
        return {"name": name, "kind": "metric", "values": _floats(distinct), "codes": packed(codes)}
    return {"name": name, "kind": "metric", "values": _floats(values), "codes": None}


def _floats(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def _texts(values: pd.Series | None, n: int) -> tuple[list[str], dict[str, str]]:
    """Return the distinct texts, control characters visible, and each cell's; code 0 is no text."""
    if values is None:
        return [], packed(np.zeros(n, np.int64))
    known = ["" if v is None or v != v else str(v) for v in values]
    code = {t: i for i, t in enumerate(dict.fromkeys(["", *known]))}
    return [visible(t) for t in list(code)[1:]], packed(np.array([code[t] for t in known]))


def _questions(facts: Facts, frame: pd.DataFrame) -> tuple[list[list[Any]], dict[str, str]]:
    """Return the distinct questions with their right answers, and each cell's; code 0 is unknown."""
    asked = facts.questions
    if not asked or "example" not in frame:
        return [], packed(np.zeros(len(frame), np.int64))
    variants = frame["variant"].fillna("main") if "variant" in frame else ["main"] * len(frame)
    keys = list(zip(frame["example"].astype(str), variants, strict=True))
    code = {k: i + 1 for i, k in enumerate(k for k in dict.fromkeys(keys) if k in asked)}
    shown = [[visible(asked[k][0]), "" if (gold := asked[k][1]) is None else tick(float(gold))] for k in code]
    return shown, packed(np.array([code.get(k, 0) for k in keys]))


# ------------------------------------------------------------------------------------------------- excerpt


def excerpt(facts: Facts, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a few edited cells whose answers changed (others where none did), spread over the run."""
    edited = frame[frame["condition"] != BASELINE]
    edited = edited if len(edited) else frame
    changed = edited[(edited["flags"].to_numpy() & CHANGED) > 0]
    picked = changed if len(changed) else edited
    picked = picked.iloc[np.unique(np.linspace(0, len(picked) - 1, EXCERPT).astype(int))]
    texts = frame.set_index("slot")["text"] if "text" in frame else None
    out = []
    for row in picked.to_dict("records"):
        asked = facts.question(row)
        place = " ".join(f"{a} {tick(row[a])}" for a in facts.places if a in row and row[a] is not None and row[a] == row[a] and str(row[a]) != "<NA>")
        before = texts.get(row["base"]) if texts is not None and row["base"] >= 0 else None
        out.append(
            {
                "example": row.get("example"),
                "condition": row["condition"],
                "place": place,
                "question": asked[0] if asked else "",
                "before": before or "–",
                "after": row.get("text") or "–",
            }
        )
    return out
