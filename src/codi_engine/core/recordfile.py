"""Records as JSON lines or JSON, read strictly and within bounds: line by line, no longer lines and no larger files than can be held."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from codi_engine.core.errors import UserError
from codi_engine.core.plainvalues import unfit_text
from codi_engine.core.textfile import opened, read_whole

LARGEST_LINE = 16_000_000
LARGEST_JSON = 256_000_000
LARGEST_FILE = 2_000_000_000
MOST = 5_000_000
LONGEST_ID = 1_000
_NUMBERS = "write numbers of at most 64 bits, longer ones as text"


class NoText(ValueError):
    """JSON that holds what is no text."""


def parse(text: str) -> Any:
    """Return the value of one JSON text.

    Raises
    ------
    ValueError: what is wrong with it, in words: no JSON, NaN, a key that stands twice, a number that no array holds, half a character
    """
    try:
        value = json.loads(text, parse_constant=_constant, parse_int=_whole, parse_float=_number, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply; records are flat") from None
    if "\\ud" in text or "\\uD" in text:  # half of a character is no text: no tokenizer and no file takes it
        problem = unfit_text(json.dumps(value, ensure_ascii=False))
        if problem:
            raise NoText(problem)
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; leave the field out or write null")


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the number {text[:12]}… has {len(text):,} digits; {_NUMBERS}")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large; {_NUMBERS}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in names if names.count(key) > 1)[:60]}' stands twice; keep one of them")
    return found


def said(error: ValueError) -> str:
    """Say what is wrong with one line of JSON; the decoder counts lines within it, which would contradict the file's."""
    if isinstance(error, json.JSONDecodeError):
        if error.lineno > 1:
            return f"not valid JSON: {error.msg} (line {error.lineno} column {error.colno})"
        extra = "; a line holds one record and nothing after it" if error.msg == "Extra data" else ""
        return f"not valid JSON: {error.msg} (column {error.colno}){extra}"
    return str(error) if isinstance(error, NoText) else f"not valid JSON: {str(error)[:200]}"


def check_size(path: Path) -> None:
    """Refuse a file that is too large to be held; raise OSError where it is not there."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise UserError(f"{path}: has {size:,} bytes; at most {LARGEST_FILE:,} are read: leave out fields that are not used, or split it")


def lines(file: BinaryIO, name: str, digest: Any = None) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every line that is not blank; ``digest`` takes every byte.

    Raises
    ------
    UserError: a line that is too long or not UTF-8, too many of them
    """
    number = 0
    while raw := file.readline(LARGEST_LINE + 1):
        number += 1
        place = f"{name}:{number}"
        if len(raw) > LARGEST_LINE:
            raise UserError(f"{place}: the line is longer than {LARGEST_LINE // 10**6} MB; write one record a line")
        if number > MOST:
            raise UserError(f"{name}: has more than {MOST:,} lines; split it")
        if digest is not None:
            digest.update(raw)
        text = decoded(raw, place, first=number == 1)
        if text.strip():
            yield place, text


def decoded(raw: bytes, place: str, first: bool = True) -> str:
    """Return UTF-8 bytes as text, without the mark that some programs begin a file with."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_json(path: Path) -> str:
    """Return the text of a JSON file, which is read at once."""
    return decoded(read_whole(path, LARGEST_JSON, "write JSON lines (.jsonl) instead, one record a line"), path.name)


def digest_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def identifier(value: Any, field: str, place: str) -> str:
    """Return an id as text.

    Raises
    ------
    UserError: it is no word and no number, or too long
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        raise UserError(f"{place}: field '{field}' must be a word or a number; got {str(value)[:60]!r}")
    if len(str(value)) > LONGEST_ID:
        raise UserError(f"{place}: field '{field}' has {len(str(value)):,} characters; at most {LONGEST_ID:,} are read: shorten it")
    return str(value)
