from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_engine.core.solutions.answers import equal, extract, numbers, reference

TABLE = [
    ("The answer is: 2,000.50", 2000.5, "marked"),
    ("The answer is: 18The answer is: 18", 18.0, "marked"),
    ("The answer is: 18.", 18.0, "marked"),
    ("… so 3 + 4 = 7\n#### 7", 7.0, "marked"),
    ("answer: -5 apples, not 9", -5.0, "marked"),
    ("The answer is $1,234,567", 1234567.0, "marked"),
    ("He has 3 apples and 4 pears", 4.0, "last"),
    ("1, 2", 2.0, "last"),
    ("18.5%", 18.5, "last"),
    ("10-3", 3.0, "last"),
    ("it was −7 degrees", -7.0, "last"),
    ("no number here", None, "none"),
    ("", None, "none"),
    ("The answer is: unclear, maybe", None, "none"),
    ("4 then The answer is: unclear", 4.0, "last"),
]


@pytest.mark.parametrize(("text", "value", "rule"), TABLE)
def test_table(text: str, value: float | None, rule: str) -> None:
    found = extract(text)
    assert found.value == value
    assert found.rule == rule


def test_first_last_and_marked_are_kept_apart() -> None:
    found = extract("2 and 3. The answer is: 5, not 6")
    assert (found.first, found.marked, found.last, found.value) == (2.0, 5.0, 6.0, 5.0)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["The answer is: {}", "#### {}", "so answer: {} !"]))
def test_any_integer_written_as_an_answer_is_found(number: int, form: str) -> None:
    assert extract(form.format(number)).value == number
    assert extract(form.format(f"{number:,}")).value == number


@given(st.text(max_size=200))
def test_any_text_is_read_without_error(text: str) -> None:
    value = extract(text).value
    assert value is None or math.isfinite(value)


def test_long_texts_are_read_in_bounded_time() -> None:
    assert numbers("1," * 500_000)
    extract("-" * 1_000_000)


def test_the_references_own_rule() -> None:
    assert reference("a 1,234.5 b") == 1234.5
    assert reference("none") == float("inf")


def test_equality_never_holds_for_no_answer() -> None:
    assert equal(np.array([1.0, np.nan, 3.0]), np.array([1.0 + 1e-9, np.nan, 4.0])).tolist() == [True, False, False]
