"""The encoding of cells, undone, is the run."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine import open_run
from codi_engine.reporting import cells
from codi_engine.reporting.facts import Facts

KINDS = {"u1": "<u1", "u2": "<u2", "u4": "<u4"}


def unpacked(column: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(column["b"]), KINDS[column["t"]]).astype(np.int64)


def numbers(column: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(column["values"]), "<f8")
    return values if column["codes"] is None else values[unpacked(column["codes"])]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**32 - 1)))
def test_packing_is_undone(values: list[int]) -> None:
    assert unpacked(cells.packed(np.array(values, np.int64))).tolist() == values


def test_the_page_holds_the_run(demo_run: Path, demo_page: Path) -> None:
    run = open_run(demo_run)
    found = re.search(r'id="cells-data">(.*?)</script>', demo_page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    frame = run.cells.set_index(run.slots).loc[unpacked(data["slot"])]
    assert data["n"] == len(run.cells)
    for column in data["columns"]:
        expected = frame[column["name"]]
        if column["kind"] == "metric":
            assert np.array_equal(numbers(column), expected.to_numpy(float), equal_nan=True)
            continue
        labels = [None, *column["labels"]]
        got = [labels[c] for c in unpacked(column["codes"])]
        assert [None if g is None else float(g) if column["numeric"] else g for g in got] == [
            None if pd.isna(v) else float(v) if column["numeric"] else str(v) for v in expected
        ]
    assert [["", *data["texts"]][c] for c in unpacked(data["text"])] == frame["text"].tolist()
    base = unpacked(data["base"]) - 1
    for at in np.flatnonzero(base >= 0)[::17]:
        one, other = frame.iloc[at], frame.iloc[base[at]]
        assert other["condition"] == "baseline"
        assert (one["example"], one["variant"]) == (other["example"], other["variant"])


def test_comparisons_are_those_of_a_loop() -> None:
    frame = pd.DataFrame({
        "example": ["a", "b", "c", "a", "b", "c", "d"], "condition": ["baseline"] * 3 + ["x"] * 4, "accuracy": [1.0, 0.0, np.nan, 0.0, 1.0, np.nan, 1.0],
        "answer": [1.0, 2.0, np.nan, 3.0, 2.0, np.nan, 4.0], "text": ["1", "2", "?", "3", "2", "!", "4"], "slot": [10, 11, 12, 13, 14, 15, 16],
    })  # fmt: skip
    flags, base = cells.compared(frame)
    assert base.tolist() == [-1, -1, -1, 10, 11, 12, -1]
    assert flags.tolist() == [
        cells.RIGHT, cells.WRONG, 0, cells.CHANGED | cells.BROKEN | cells.WRONG, cells.MENDED | cells.RIGHT, cells.CHANGED, cells.RIGHT,
    ]  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 200))
def test_a_sample_has_every_place_and_the_same_share(sizes: list[int], limit: int) -> None:
    frame = pd.DataFrame({"condition": "x", "layer": np.repeat(range(len(sizes)), sizes)})
    frame["slot"] = range(len(frame))
    got = cells.sampled(frame, ["layer"], limit)
    assert len(got) <= limit + len(sizes) or len(frame) <= limit
    share = min(limit / len(frame), 1.0)
    for layer, size in enumerate(sizes):
        count = int((got["layer"] == layer).sum())
        assert count == max(1, int(np.floor(size * share + 1e-9))) or abs(count - size * share) < 1


def test_too_many_cells_are_sampled_and_it_is_said(demo_run: Path) -> None:
    facts = Facts(open_run(demo_run))
    made = cells.cells(facts, limit=60)
    assert made is not None
    assert f"of {len(facts.cells)} cells" in made.html
    small = cells.cells(facts, most=4_000)
    assert small is not None
    assert "A sample of" in small.html
