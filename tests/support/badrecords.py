"""Data files that are bad in a known way: good records, one of them broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.support.badfiles import written

GOOD: dict[str, list[dict[str, Any]]] = {
    "problems": [
        {"id": f"p{n}", "question": f"Tom has {n} apples and buys {n + 2}. How many are there?", "answer": 2 * n + 2, "level": n % 2} for n in range(4)
    ],
    "pairs": [
        {
            "pair_id": f"q{n}",
            "clean": {"question": f"Ann has {n} pens and gets 3. How many?", "answer": n + 3},
            "corrupted": {"question": f"Ann has {n} pens and gets 5. How many?", "answer": n + 5},
        }
        for n in range(4)
    ],
    "prompts": [{"id": f"t{n}", "text": f"Write the number {n} in words.", "group": "more" if n % 2 else "less"} for n in range(4)],
}
_IDS = {"problems": "id", "pairs": "pair_id", "prompts": "id"}
_TEXTS = {"problems": ("question",), "pairs": ("clean", "question"), "prompts": ("text",)}


@dataclass(frozen=True)
class BadRecords:
    """A data file, what was done to it, and a pattern of how its error names the record (None: it is about the whole file)."""

    broken: str
    plugin: str
    name: str
    content: bytes
    line: str | None


def experiment_of(plugin: str, path: str) -> bytes:
    """Return an experiment that reads a data file and edits nothing."""
    model = {"plugin": "causal_lm", "path": "demo"} if plugin == "prompts" else {"plugin": "codi", "checkpoint": "demo"}
    return written({"name": "data", "model": model, "data": {"plugin": plugin, "path": path}})


def good_records(plugin: str, ending: str = "jsonl") -> bytes:
    """Return records that are as they should be."""
    records = GOOD[plugin]
    return (json.dumps(records) if ending == "json" else "".join(json.dumps(r) + "\n" for r in records)).encode()


def _with(record: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(record))
    target = copy
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return copy


def _without(record: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(record))
    target = copy
    for part in path[:-1]:
        target = target[part]
    del target[path[-1]]
    return copy


# ------------------------------------------------------------------------------------- one record, as a value


def _values(plugin: str) -> list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]]:
    """Return (what, record → broken record)."""
    text, key = _TEXTS[plugin], _IDS[plugin]
    places: dict[str, list[tuple[str, ...]]] = {"problems": [("answer",)], "pairs": [("clean", "answer"), ("corrupted", "answer")], "prompts": []}
    broken: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = [("without text", lambda r: _without(r, text))]
    value: Any
    for value in (None, 1, 1.5, True, [], ["a"], {}, {"a": "b"}, "", "   ", "\n\t", "\u200b".replace("\u200b", " ")):
        broken.append((f"text {value!r}", lambda r, v=value: _with(r, text, v)))  # type: ignore[misc]
    for value in (None, [], {}, [1], {"a": 1}, True, False, "", "x" * 5000):
        broken.append((f"id {str(value)[:20]!r}", lambda r, v=value: _with(r, (key,), v)))  # type: ignore[misc]
    for misspelt in (text[-1].upper(), text[-1] + "s", " " + text[-1], text[-1] + "\u202e"):
        broken.append((f"text as {misspelt!r}", lambda r, m=misspelt: _with(_without(r, text), (*text[:-1], m), "Hello there")))  # type: ignore[misc]
    for place in places[plugin]:
        broken.append((f"without {place}", lambda r, p=place: _without(r, p)))  # type: ignore[misc]
        for value in (None, "", "many", [], [3], {}, {"value": 3}, True, "3 or 4", "1/2 of 7", "####", "#### x", "NaN", "inf", "-", "twelve"):
            broken.append((f"{place} {value!r}", lambda r, p=place, v=value: _with(r, p, v)))  # type: ignore[misc]
    if plugin == "pairs":
        for side in ("clean", "corrupted"):
            broken.append((f"without {side}", lambda r, s=side: _without(r, (s,))))  # type: ignore[misc]
            for value in (None, "text", 3, [], [{"question": "a", "answer": 1}], {}):
                broken.append((f"{side} {value!r}", lambda r, s=side, v=value: _with(r, (s,), v)))  # type: ignore[misc]
        broken.append(("equal answers", lambda r: _with(r, ("corrupted", "answer"), r["clean"]["answer"])))
    return broken


_BROKEN = {plugin: _values(plugin) for plugin in GOOD}


def wrong_value(draw: st.DrawFn, plugin: str) -> BadRecords:
    what, change = draw(st.sampled_from(_BROKEN[plugin]))
    ending = draw(st.sampled_from(["jsonl", "json"]))
    number = draw(st.integers(0, 3))
    records = [change(r) if n == number else r for n, r in enumerate(GOOD[plugin])]
    content = json.dumps(records) if ending == "json" else "".join(json.dumps(r) + "\n" for r in records)
    place = rf"bad\.json\[{number}\]" if ending == "json" else rf"bad\.jsonl:{number + 1}\b"
    return BadRecords(f"{plugin}: {what}", plugin, f"bad.{ending}", content.encode(), place)


# ---------------------------------------------------------------------------------------- one line, as text

#: what stands in the file in place of one record; each is no record
_LINES: dict[str, bytes] = {
    "no JSON": b"hello",
    "half": b'{"question": "a',
    "open": b'{"id": "a"',
    "single quotes": b"{'id': 'a'}",
    "bare key": b'{id: "a"}',
    "comma": b'{"id": "a",}',
    "comment": b'{"id": "a"} // x',
    "two": b'{"id": "a"}{"id": "b"}',
    "list": b'[{"id": "a"}]',
    "number": b"3",
    "text": b'"a"',
    "null": b"null",
    "true": b"true",
    "empty object": b"{}",
    "empty list": b"[]",
    "NaN": b'{"id": "a", "x": NaN, "question": "a", "text": "a", "answer": 1}',
    "Infinity": b'{"x": Infinity}',
    "-Infinity": b'{"x": -Infinity}',
    "overflow": b'{"x": 1e999}',
    "-overflow": b'{"x": -1e999}',
    "huge integer": b'{"x": 1' + b"0" * 400 + b"}",
    "very huge integer": b'{"x": 1' + b"0" * 9000 + b"}",
    "65 bits": b'{"x": 18446744073709551616}',
    "duplicate key": b'{"id": "a", "id": "b", "question": "a", "text": "b", "answer": 2}',
    "duplicate inside": b'{"id": "a", "clean": {"answer": 1, "answer": 2}}',
    "deep list": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep open": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "surrogate": b'{"text": "a\\ud800b", "question": "a\\ud800b"}',
    "surrogate key": b'{"\\ud800": 1}',
    "low surrogate": b'{"text": "\\udc00", "question": "\\udc00"}',
    "NUL byte": b'{"text": "a\0b", "question": "a\0b"}',
    "raw tab": b'{"text": "a\tb", "question": "a\tb"}',
    "escape byte": b'{"text": "\x1b[2J", "question": "\x1b[2J"}',
    "latin-1": b'{"text": "\xe9t\xe9", "question": "\xe9"}',
    "overlong": b'{"text": "\xc0\xaf", "question": "\xc0\xaf"}',
    "raw surrogate": b'{"text": "\xed\xa0\x80"}',
    "bom inside": b'\xef\xbb\xbf{"id": "a"}',
    "leading zero": b'{"x": 01}',
    "hex": b'{"x": 0x1}',
    "plus": b'{"x": +1}',
    "bad escape": b'{"x": "\\x41"}',
    "python": b"{'a': None}",
    "yaml": b"id: a",
    "csv": b"id,question,answer",
    "html": b"<html>",
    "binary": bytes(range(128, 256)),
    "zeros": b"\0" * 1000,
}


def wrong_line(draw: st.DrawFn, plugin: str) -> BadRecords:
    what = draw(st.sampled_from(sorted(_LINES)))
    number = draw(st.integers(1, 3))
    ending = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    lines = [json.dumps(r).encode() for r in GOOD[plugin]]
    lines[number] = _LINES[what]
    line = number * len(ending.replace("\r", "")) + 1
    return BadRecords(f"{plugin}: {what}", plugin, "bad.jsonl", ending.encode().join(lines), rf"bad\.jsonl:{line}\b")


# --------------------------------------------------------------------------------------------- the whole file


def _files(plugin: str) -> dict[str, tuple[str, bytes]]:
    good, records = good_records(plugin), GOOD[plugin]
    twice = [*records, {**records[0], "x": 1}]
    same_id = [*records[:3], _with(records[3], (_IDS[plugin],), records[0][_IDS[plugin]])]
    return {
        "empty": ("bad.jsonl", b""),
        "blank": ("bad.jsonl", b"\n\n  \n\r\n"),
        "bom only": ("bad.jsonl", b"\xef\xbb\xbf"),
        "utf-16": ("bad.jsonl", good.decode().encode("utf-16")),
        "utf-16-be": ("bad.jsonl", good.decode().encode("utf-16-be")),
        "utf-32": ("bad.jsonl", good.decode().encode("utf-32")),
        "gzip": ("bad.jsonl.gz", b"\x1f\x8b\x08" + b"\0" * 50),
        "gzip under another name": ("bad.jsonl", b"\x1f\x8b\x08\0\0\0\0\0" + b"\0" * 50),
        "csv": ("bad.csv", b"id,question,answer\n1,a,2\n"),
        "zip": ("bad.zip", b"PK\x03\x04"),
        "yaml": ("bad.yaml.jsonl", b"- id: a\n"),
        "list in jsonl": ("bad.jsonl", json.dumps(records, indent=1).encode()),
        "lines in json": ("bad.json", good),
        "empty json": ("bad.json", b""),
        "empty list": ("bad.json", b"[]"),
        "empty object": ("bad.json", b"{}"),
        "two lists": ("bad.json", json.dumps({"a": records, "b": []}).encode()),
        "number": ("bad.json", b"7"),
        "text": ("bad.json", b'"x"'),
        "null": ("bad.json", b"null"),
        "list of lists": ("bad.json", b"[[1]]"),
        "NaN": ("bad.json", b"[NaN]"),
        "deep": ("bad.json", b"[" * 300_000),
        "duplicate key": ("bad.json", b'[{"id": 1, "id": 2}]'),
        "no parquet": ("bad.parquet", good),
        "empty parquet": ("bad.parquet", b""),
        "half a parquet": ("bad.parquet", b"PAR1" + b"\0" * 40 + b"PAR1"),
        "parquet of zeros": ("bad.parquet", b"\0" * 500),
        "the same twice": ("bad.jsonl", "".join(json.dumps(r) + "\n" for r in twice).encode()),
        "the same id": ("bad.jsonl", "".join(json.dumps(r) + "\n" for r in same_id).encode()),
        "a line of 40 MB": ("bad.jsonl", b'{"text": "' + b"a" * 40_000_000),
        "40 MB without an end": ("bad.jsonl", b"a" * 40_000_000),
    }


def wrong_file(draw: st.DrawFn, plugin: str) -> BadRecords:
    what = draw(st.sampled_from(sorted(_files(plugin))))
    name, content = _files(plugin)[what]
    return BadRecords(f"{plugin}: {what}", plugin, name, content, None)


@st.composite
def bad_records(draw: st.DrawFn) -> BadRecords:
    """Draw a bad data file."""
    plugin = draw(st.sampled_from(sorted(GOOD)))
    how = draw(st.sampled_from([wrong_value, wrong_value, wrong_value, wrong_line, wrong_line, wrong_line, wrong_file]))
    return how(draw, plugin)
