"""What makes foreign text harmless in a page: hidden characters shown, JSON that cannot end its element, hashes for the policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from codi_engine.core.text import shown_as

_JSON = re.compile("[<>&\u2028\u2029]")


def visible(value: object) -> str:
    """Return text in which control characters, bidi marks and other invisible ones are seen: ``␛``, ``⟨U+202E⟩``.

    Line ends and tabs stay. Markup is left as it is: escaping is the template's.
    """
    return shown_as(str(value), _sign)


def _sign(character: str) -> str:
    number = ord(character)
    if number < 0x20:
        return chr(0x2400 + number)
    if number == 0x7F:
        return "␡"
    return f"⟨U+{number:04X}⟩"


def json_text(value: Any) -> str:
    """Return JSON for a ``<script type="application/json">``: no character of it can end the element or be taken for markup.

    Raises
    ------
    ValueError: a number is not finite
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def source_hash(text: str) -> str:
    """Return a source expression such as ``'sha256-…'`` of an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(styles: Iterable[str], scripts: Iterable[str]) -> str:
    """Return the content security policy of a page with these inline styles and scripts: nothing else is run, loaded or sent."""
    allowed = {"style-src": styles, "script-src": scripts}
    parts = ["default-src 'none'", "img-src data:"]
    parts += [f"{name} {' '.join(source_hash(t) for t in texts)}" for name, texts in allowed.items()]
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])
