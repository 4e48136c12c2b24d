"""Text of models, data and files made safe for those that show it: terminals, Markdown, JSON, spreadsheets."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from codi_engine.store.shown import named

#: marks on one letter; the alphabets of the world need fewer
MARKS = 8
#: at the beginning of a CSV field a spreadsheet takes what follows for a formula, after spaces and line ends too
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: letters without ink
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
#: so many signs in a row that they may be a flood of marks; and with the letters without ink, what makes printable text suspect
_FLOOD = re.compile(f"[^\\w\\x00-\\x7f]{{{MARKS + 1},}}")
_SUSPECT = re.compile(f"[{''.join(sorted(_BLANK))}]|{_FLOOD.pattern}")


def neutral(text: object) -> str:
    """Return the text with characters that act or hide shown as their code: ``\\x1b``, ``\\u202e``; line ends and tabs stay.

    Of more than :data:`MARKS` marks on one letter the rest is counted: ``⟨52 marks⟩``.
    """
    return shown_as(named(str(text)), _code)


def shown_as(text: str, sign: Callable[[str], str]) -> str:
    """Return the text with each hidden character replaced by its ``sign``, and floods of marks cut."""
    flat = text.replace("\n", "").replace("\t", "")
    if flat.isprintable() and not _SUSPECT.search(flat):
        return text
    out: list[str] = []
    marks = 0
    for character in text:
        kind = unicodedata.category(character)
        if kind[0] == "M":
            marks += 1
            if marks <= MARKS:
                out.append(character)
            continue
        if marks > MARKS:
            out.append(f"⟨{marks - MARKS} marks⟩")
        marks = 0
        out.append(" " if kind == "Zs" else sign(character) if hidden(character, kind) else character)  # spaces of other widths are seen as spaces
    if marks > MARKS:
        out.append(f"⟨{marks - MARKS} marks⟩")
    return "".join(out)


def hidden(character: str, kind: str) -> bool:
    """Say whether a character of this category acts on what shows it, or cannot be seen."""
    return (kind[0] == "C" and character not in "\n\t") or kind in ("Zl", "Zp") or character in _BLANK


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


# ----------------------------------------------------------------------------------------------- Markdown

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!$])")
#: what GitHub turns into links by itself
_LINKS = re.compile(r"://|(?i:\bwww)\.|@")
_ENTITIES = {"://": "&#58;//", "@": "&#64;"}
#: what begins a list, a rule or a heading where it begins a line
_BEGINS = re.compile(r"\A(\d*)([.)+=-])(?=\s|\Z|[=-])")


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is, in one line: nothing of it is markup, HTML or a link."""
    flat = re.sub(r"\s+", " ", neutral(text)).strip()
    safe = _SPECIAL.sub(r"\\\1", flat.replace("&", "&amp;"))
    safe = _LINKS.sub(lambda m: _ENTITIES.get(m[0], m[0][:-1] + "&#46;"), safe)
    return _BEGINS.sub(r"\1\\\2", safe)


# --------------------------------------------------------------------------------------------------- JSON


def json_shown(value: Any, indent: int | None = 2) -> str:
    """Return JSON for a terminal or a file: other alphabets as they are, characters that act or hide as escapes, no NaN (null)."""
    text = named(json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str))
    if text.isascii() and "\x7f" not in text:
        return text
    calm = _FLOOD.sub(lambda found: "".join(json.dumps(c)[1:-1] if unicodedata.category(c)[0] == "M" else c for c in found[0]), text)
    return "".join(map(_escaped, calm))


def _escaped(character: str) -> str:
    if character.isprintable() or character == "\n":  # the only line ends are those between values
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------------------- spreadsheets


def marked(text: str) -> str:
    """Return the text as a CSV field that no spreadsheet takes for a formula: with an apostrophe in front where it begins like one.

    Texts that begin with an apostrophe get one too, so that :func:`unmarked` gives every text back. Plain numbers stay numbers.
    """
    begun = text.lstrip().startswith(_FORMULA) or text.startswith(("\t", "\r", "'"))
    return f"'{text}" if begun and not _NUMBER.fullmatch(text) else text


def unmarked(field: str) -> str:
    """Return the text of a field that :func:`marked` wrote."""
    rest = field[1:]
    return rest if field.startswith("'") and (marked(rest) == field or _NUMBER.fullmatch(rest)) else field


def short(text: str, most: int = 500) -> str:
    """Return the text with its long lines cut in the middle: a message begins with its place and ends with its remedy."""
    half = most // 2
    return "\n".join(line if len(line) <= most else f"{line[:half]} … {line[-half:]}" for line in text.split("\n"))
