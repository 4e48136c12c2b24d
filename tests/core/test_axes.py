from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_engine.core.axes import label, resolve_axis
from codi_engine.core.errors import UserError


def axis(value: Any, name: str = "step", size: int | None = 6) -> list[tuple[int, ...]]:
    return resolve_axis(name, value, size, where=f"sweep.{name}", source="e.yaml")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", [(i,) for i in range(6)]),
        ("each", [(i,) for i in range(6)]),
        (3, [(3,)]),
        ([0, [1, 2]], [(0,), (1, 2)]),
        ("0:6:2", [(0,), (2,), (4,)]),
        ({"range": [1, 3]}, [(1,), (2,)]),
        ("cumulative", [tuple(range(i + 1)) for i in range(6)]),
        ("all_at_once", [(0, 1, 2, 3, 4, 5)]),
        (["all_at_once", 5], [(0, 1, 2, 3, 4, 5), (5,)]),
    ],
)
def test_values(value: Any, expected: list[tuple[int, ...]]) -> None:
    assert axis(value) == expected


def test_pairs_and_depths_and_positions() -> None:
    assert len(axis("pairs")) == 15
    assert [axis(d, "layer", 12)[0][0] for d in ("early", "middle", "late")] == [3, 6, 11]
    assert [axis(d, "layer", 16)[0][0] for d in ("early", "middle", "late")] == [4, 8, 14]
    assert axis([-1, -2], "position", None) == [(-1,), (-2,)]
    assert axis([-1], "layer", 4) == [(3,)]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_subsets_are_all_of_them_small_ones_first(size: int) -> None:
    sets = axis("subsets", size=size)
    naive = [tuple(i for i in range(size) if mask >> i & 1) for mask in range(1, 2**size)]
    assert sorted(sets) == sorted(naive)
    assert [len(s) for s in sets] == sorted(len(s) for s in naive)


def test_subsets_of_many_are_refused_with_their_number() -> None:
    with pytest.raises(UserError, match=r"sweep.step: 'subsets' of 11 would be 2,047 sets; it takes at most 10"):
        axis("subsets", size=11)
    with pytest.raises(UserError, match="needs a known number"):
        axis("subsets", "position", None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0, 6], r"`step` must be in 0..5 for a model with 6 latents; got 6 \(e.yaml: sweep.step\[1\]\)"),
        ([1, 1], "stands twice"),
        ([], "empty"),
        ("al", "did you mean 'all'"),
        ("1:x", "no range"),
        (1.5, "whole numbers"),
        (True, "whole numbers"),
        ([[]], "empty set"),
        ({"rang": [0, 1]}, "range"),
        ("0:9", "must be in 0..5"),
    ],
)
def test_errors_name_field_and_remedy(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        axis(value)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
def test_labels_tell_sets_apart(chosen: list[int]) -> None:
    (value,) = axis([chosen])
    assert value == tuple(sorted(chosen))
    assert label(value) == (chosen[0] if len(chosen) == 1 else "+".join(map(str, sorted(chosen))))
