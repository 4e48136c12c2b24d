"""Text of models, data and files made safe for a terminal."""

from __future__ import annotations

import unicodedata


def neutral(text: object) -> str:
    """Return the text with control and formatting characters shown as their code; line ends and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else _code(c) for c in str(text))


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
