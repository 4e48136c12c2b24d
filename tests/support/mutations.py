"""Valid files made hostile: mutations that know a format's structure, and those that know nothing."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

ABSURD: list[Any] = [
    0, -1, 1, 3, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 1e308, -1e308, 0.5, 2.0,
    float("inf"), float("nan"), True, False, None, "", "x", "\0", "../../etc/passwd", "/dev/zero", "A" * 5000, [], {}, [[]], [0], [-1], [2**40], [0, 2**62],
    [2**62] * 3, [2**62] * 70, [1] * 100, [2**63 - 1] * 20_000, {"a": {}}, "|O", "V8", "bfloat17", "<f4", "<U1000000", "F32", "I64", "F8_E4M3", "F4", "BOOL",
    "\x1b[31m\n", "\ud800", "NaN", "Infinity", "1e999", [[1, 2], [3]], ["a", 1, None], {"": 0},
]  # fmt: skip
NUMBERS = [0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_DEEP = "@@deep@@"
_PICKLES = [
    b"cposix\nsystem\n(S'touch ../canary'\ntR",
    b"cbuiltins\nbytearray\n(L1099511627776L\ntR",
    b"ccollections\nCounter\n(L1099511627776L\ntR",
    b"c_codecs\nencode\n(V" + b"x" * 99 + b"\nVlatin1\ntR",
    b"cbuiltins\neval\n(S'1'\ntR",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nload\n(S'/etc/passwd'\ntR",
    b"(" * 5000,
    b"]" + b"(l" * 2000,
    b"](" + b"".join(b"h%ch%c" % (i, i) for i in range(100)),
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"B\xff\xff\xff\x7f",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00",
    b"\x96\xff\xff\xff\xff\xff\xff\xff\x00",
]


def raw(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return bytes with one to four local changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        out = _changed(rng, out, others)
    return bytes(out)


def _changed(rng: Random, data: bytearray, others: Sequence[bytes]) -> bytearray:
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.4:  # where headers and indices lie
        at = min(at, rng.randrange(200)) if rng.random() < 0.5 else max(at, len(data) - rng.randrange(200))
    at = min(at, max(len(data) - 1, 0))
    length = rng.choice((1, 2, 4, 8, 16, 64, 500))
    match rng.randrange(10):
        case 0 if data:
            data[at] ^= 1 << rng.randrange(8)
        case 1 if data:
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        case 2:
            del data[at:]
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 100))
        case 5:
            data[at:at] = rng.randbytes(length)
        case 6:
            data[at : at + length] = bytes([rng.choice((0, 255))]) * min(length, len(data) - at)
        case 7 if others:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        case _:
            form = rng.choice("BHIQ")
            size = struct.calcsize(form)
            data[at : at + size] = struct.pack("<" + form, rng.choice(NUMBERS) % 256**size)
    return data


# ---------------------------------------------------------------------------------------------------------------- JSON


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    if len(found) < 2000:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in list(items):
            found.append((value, key))
            _places(inner, found)
    return found


def changed_value(rng: Random, value: Any) -> Any:
    """Return a JSON value (which is changed in place) with one node replaced, removed, doubled, renamed or exchanged."""
    places = _places(value, [])
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(ABSURD))
    holder, key = rng.choice(places)
    old = holder[key]
    match rng.randrange(9):
        case 0:
            del holder[key]
        case 1:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[place])) if place in (other if isinstance(other, dict) else range(len(other))) else None
        case 2 if isinstance(holder, dict):
            holder[rng.choice(("", "x", "\n", f"{key}x", "A" * 300, "__metadata__", "../x"))] = holder.pop(key)
        case 3 if isinstance(holder, list):
            holder[key:key] = [old] * rng.choice((1, 2, 300))
        case 4 if isinstance(old, int) and not isinstance(old, bool):
            holder[key] = old + rng.choice((-1, 1, 8, -8, 0.5, 2**31))
        case 5:
            holder[key] = rng.choice(([old], {"x": old}, str(old), [old] * 70))
        case 6 if rng.random() < 0.3:
            holder[key] = _DEEP
        case _:
            holder[key] = copy.deepcopy(rng.choice(ABSURD))  # the next change must not reach the original
    return value


def text_of(rng: Random, value: Any) -> bytes:
    """Return the JSON text, deep nesting and now and then a key that stands twice filled in."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    depth = rng.choice((100, 900, 1100, 100_000))
    text = text.replace(f'"{_DEEP}"', rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth)))
    if rng.random() < 0.1 and text.startswith("{") and '": ' in text:
        end = text.index(":")
        text = "{" + text[1:end] + ": " + json.dumps(rng.choice(ABSURD)) + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def json_text(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return a JSON file with a changed node, or changed as bytes."""
    if rng.random() < 0.2:
        return raw(rng, data, others)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        value = changed_value(rng, value)
    return text_of(rng, value)


def json_lines(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return JSON lines with one line changed, doubled or removed."""
    if rng.random() < 0.2:
        return raw(rng, data, others)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines[at:at] = [lines[at]] * rng.choice((1, 3))
        case 1:
            del lines[at]
        case _:
            lines[at] = text_of(rng, changed_value(rng, json.loads(lines[at])))
    return b"\n".join(lines) + b"\n" * rng.randrange(2)


def table_text(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return a CSV file with changed fields."""
    if rng.random() < 0.4:
        return raw(rng, data, others)
    rows = [line.split(b",") for line in data.splitlines()]
    row = rng.choice(rows)
    hostile = [b"", b'"', b'""', b'"\n"', b"A" * 200_000, b"=1+1", b"1e999", b"-0", b"nan", b"\xff", b"\0", b"9" * 400, b"9" * 5000, "é\u2028".encode(), b"a,b"]
    match rng.randrange(4):
        case 0:
            row.append(rng.choice(hostile))
        case 1:
            row.pop()
        case _:
            row[rng.randrange(len(row))] = rng.choice(hostile)
    return rng.choice((b"\n", b"\r\n", b"\r")).join(b",".join(r) for r in rows)


# -------------------------------------------------------------------------------------------------------------- arrays


def safetensors(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return a safetensors file with a changed header; its stated length mostly fits."""
    if rng.random() < 0.25:
        return raw(rng, data, others)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 2))):
        header = changed_value(rng, header)
    text = text_of(rng, header)
    text += b" " * (-len(text) % 8)
    stated = len(text) if rng.random() < 0.95 else rng.choice(NUMBERS)
    body = data[8 + length :]
    return struct.pack("<Q", stated) + text + (body if rng.random() < 0.9 else body[: rng.randrange(len(body) + 1)])


_SHAPES = [
    "(1099511627776,)",
    "(0, 4611686018427387904)",
    "(-1,)",
    "(2,",
    "()",
    "(4611686018427387904, 4)",
    "(True,)",
    "(1.5,)",
    "'x'",
    "(" * 200,
    "((((2,),),),)",
]
_SHAPES += ["(" + "1," * 70 + ")", "(10**9,)", "(9" + "9" * 4000 + ",)", "[2, 3]", "None", "(2, 3, 99)", "(1,) * 9999999999"]
_TYPES = [
    "'|O'",
    "'<f8'",
    "'<U1000000000'",
    "'|V8'",
    "[('a', '<f4', (2147483647,))]",
    "'<c16'",
    "'bfloat17'",
    "None",
    "'<M8[ns]'",
    "'(99999999,)f4'",
    "[('a', 'O')]",
]
_TYPES += ["'|S0'", "'>f2'", "'<f16'", "'f4,f4'", "__import__('os')", "'|b1'", "{'names': ['a'], 'formats': ['f4'], 'offsets': [2147483000]}"]


def npy(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return an npy file with another shape, type or header."""
    if rng.random() < 0.2:
        return raw(rng, data, others)
    length = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + length].decode("latin1")
    descr, shape = text[text.index("'descr': ") + 9 : text.index(", 'fortran")], text[text.index("'shape': ") + 9 : text.rindex(", }")]
    match rng.randrange(5):
        case 0 | 1:
            text = text.replace(shape, rng.choice(_SHAPES))
        case 2:
            text = text.replace(descr, rng.choice(_TYPES))
        case 3:
            text = text.replace("False", rng.choice(("True", "None", "2", "'x'")))
        case _:
            text = raw(rng, text.encode("latin1")).decode("latin1")
    if rng.random() < 0.02:
        text = "(" * rng.choice((1000, 60_000, 1_000_000))
    encoded = text.encode("latin1")
    if len(encoded) > 65535 or rng.random() < 0.1:
        version = rng.choice((2, 3))
        return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<I", len(encoded)) + encoded + data[10 + length :]
    return data[:8] + struct.pack("<H", len(encoded)) + encoded + data[10 + length :]


def pickle(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return a pickle with opcodes removed, doubled, exchanged or hostile ones put in; none is run here."""
    if rng.random() < 0.2:
        return raw(rng, data, others)
    starts = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    codes = [data[a:b] for a, b in pairwise(starts)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(codes))
        match rng.randrange(6):
            case 0:
                del codes[at]
                codes = codes or [b"."]
            case 1:
                codes[at:at] = [codes[at]] * rng.choice((1, 2, 1000))
            case 2:
                other = rng.randrange(len(codes))
                codes[at], codes[other] = codes[other], codes[at]
            case 3:
                codes[at:at] = [rng.choice(_PICKLES)]
            case _:
                numbers = [i for i, c in enumerate(codes) if c[:1] in b"JKM\x8a"] or [at]
                value = rng.choice(NUMBERS)
                codes[rng.choice(numbers)] = b"\x8a\x09" + value.to_bytes(9, "little")
    return b"".join(codes)


def archive(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return a zip file (npz, pt) with a member changed in its own way, packed, doubled, renamed or lost."""
    if data[:2] != b"PK" or rng.random() < 0.2:
        return raw(rng, data, others)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    at = rng.randrange(len(members))
    hot = [i for i, (n, _) in enumerate(members) if n.endswith((".npy", ".pkl"))]
    if hot and rng.random() < 0.8:
        at = rng.choice(hot)
    name, content = members[at]
    match rng.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.append((name, content))
        case 2:
            members[at] = (rng.choice(("../../x", "/etc/x", "x" * 3000, "", "data.pkl", "x.npy", "a/b\0.npy")), content)
        case _:
            change: Callable[..., bytes] = npy if content[:6] == b"\x93NUMPY" else pickle if name.endswith(".pkl") else raw
            members[at] = (name, change(rng, content))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED) as new:
        for member, inside in members:
            new.writestr(zipfile.ZipInfo(member or "x"), inside)
    return raw(rng, out.getvalue()) if rng.random() < 0.1 else out.getvalue()


def bomb(member: str, header: bytes, count: int) -> bytes:
    """Return a zip file with one deflated member: a header and about ``count`` zeros, packed once and repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    blocks = count >> 24
    body = first + block * blocks + packer.flush()
    name = member.encode()
    extra = struct.pack("<HHQQ", 1, 16, len(header) + (blocks << 24), len(body))
    fields = struct.pack("<HHHHHIIIHH", 45, 0, 8, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
    local = b"PK\x03\x04" + fields + name + extra + body
    central = b"PK\x01\x02" + struct.pack("<H", 45) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name + extra
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
