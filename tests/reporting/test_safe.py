"""Text, JSON and the policy without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine.reporting.safe import json_text, policy, visible


@settings(deadline=None, max_examples=80)
@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    shown = visible(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert visible(shown) == shown
    if text.isprintable() and not set(text) & set("\u115f\u1160\u2800\u3164\uffa0"):  # letters without ink
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"), [("\x1b[0m", "␛[0m"), ("a\u202eb", "a⟨U+202E⟩b"), ("\x7f\x85", "␡⟨U+0085⟩"), ("a\nb\tc\r", "a\nb\tc␍"), ("\ud800", "⟨U+D800⟩")]
)
def test_hidden_characters_are_named(text: str, shown: str) -> None:
    assert visible(text) == shown


@settings(deadline=None, max_examples=80)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_json_is_harmless_and_the_same(value: object) -> None:
    text = json_text(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_json_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(float("nan"))


def test_the_policy_names_what_is_in_the_page(demo_page: Path) -> None:
    text = demo_page.read_text(encoding="utf-8")
    stated = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert stated is not None
    found = stated[1].replace("&#39;", "'")
    style, script = re.findall(r"<style>(.*?)</style>", text, re.DOTALL), re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(style) == len(script) == 1
    for body, name in ((style[0], "style-src"), (script[0], "script-src")):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in found
    assert found == policy(style, script)
    assert found.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"\sstyle=|\son[a-z]+=", re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL))
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
