"""Words of many documents: tokens and their vocabulary.

Text is one uint8 array of UTF-8 and int64 offsets, as in Arrow: document d is ``data[offsets[d]:offsets[d + 1]]``.

How it is fast: 64 bytes at a time become one bit per byte and class (letter, digit, …), so that starts and ends of tokens
are bit operations; the approach is that of Langdale & Lemire 2019, "Parsing gigabytes of JSON per second", section 3.1.
A token of at most 11 bytes *is* its key in the hash table: nothing else is compared. Longer ones are found by a hash
and compared with their stored bytes.

Documents with a byte ≥ 0x80 are lower-cased by Python, and their code points take the classes that Python's ``re`` gives them:
results equal ``re.findall(pattern, text.lower())`` for every text.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from codi_engine.kernels.accelerate import ENABLED, jit

PATTERNS = {
    "simple": r"\$?\d+|\b[a-zA-Z]+\b",
    "extended": r"(?:[$₩￦]?\d+(?:\.\d+)?)|[\uac00-\ud7a3]+|[a-zA-Z]+|[%$]",
}

BLOCK = 64  # bytes classified at once; a buffer is readable for as many bytes past its end
CHUNK = 1 << 18  # bytes of text per kernel call: text, tokens and the table's hot part stay in the L2 cache
SHORT = 11  # bytes of a token that is its own key
BATCH = 1024  # tokens looked up at once
OTHER, WORD, DIGIT, HANGUL, LETTER = 0, 1, 2, 3, 4
SLOTS, MASK, ARENA, ROOM, ENDS, MOST, SIZE = range(0, 56, 8)  # a vocabulary's header: where its fields are

U0, U1, U24, U32 = np.uint64(0), np.uint64(1), np.uint64(24), np.uint64(32)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
LOW = np.uint64(0xFFFFFFFF)
LONG = np.uint64(0xFF000000)  # where a short token's key has its length
WON, WIDE_WON = np.uint64(0xA982E2), np.uint64(0xA6BFEF)  # ₩ and ￦ as bytes
MIX, MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)

# ------------------------------------------------------------------------------------------- memory by address
#
# Helpers take addresses, not arrays: numba counts references at each call that passes an array, which costs more than the work.
# The caller holds the arrays. Little-endian, as all machines that numba compiles for.


def _plain_matches(a: int, low: int, width: int) -> Any:
    values = np.frombuffer(ctypes.string_at(int(a), BLOCK), np.uint8) - np.uint8(low)
    return np.packbits(values < width, bitorder="little").view(np.uint64)[0]


def _plain_load(a: int) -> Any:
    return np.uint64(ctypes.c_uint64.from_address(int(a)).value)


def _plain_store(a: int, value: Any) -> None:
    ctypes.c_uint64.from_address(int(a)).value = int(value)


def _plain_zeros(x: Any) -> int:
    return (int(x) & -int(x)).bit_length() - 1 if x else 64


def _intrinsics() -> tuple[Callable[..., Any], ...]:
    """Return matches, load, store and zeros as LLVM: vectors of 64 bytes in portable form, whatever the machine's width."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    byte, word, vector = ir.IntType(8), ir.IntType(64), ir.VectorType(ir.IntType(8), BLOCK)

    def read(builder: Any, address: Any, what: Any) -> Any:
        loaded = builder.load(builder.inttoptr(address, what.as_pointer()))
        loaded.align = 1
        return loaded

    def splat(builder: Any, value: Any) -> Any:
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), builder.trunc(value, byte), ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), None))

    @intrinsic
    def matches(typing: Any, a: Any, low: Any, width: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = builder.sub(read(builder, args[0], vector), splat(builder, args[1]))
            return builder.bitcast(builder.icmp_unsigned("<", values, splat(builder, args[2])), word)

        return types.uint64(types.int64, types.int64, types.int64), code

    @intrinsic
    def load(typing: Any, a: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return read(builder, args[0], word)

        return types.uint64(types.int64), code

    @intrinsic
    def store(typing: Any, a: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(args[1], builder.inttoptr(args[0], word.as_pointer())).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.uint64), code

    @intrinsic
    def zeros(typing: Any, x: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

        return types.int64(types.uint64), code

    return matches, load, store, zeros


# matches: bit k is set where (byte a + k − low) mod 256 < width; load, store: 8 bytes at a; zeros: trailing zero bits
_matches, _load, _store, _zeros = _intrinsics() if ENABLED else (_plain_matches, _plain_load, _plain_store, _plain_zeros)


@jit
def _byte(a: Any) -> Any:
    return np.int64(_load(a) & np.uint64(0xFF))


@jit
def _field(a: Any) -> Any:
    return np.int64(_load(a))


@jit
def _first(n: Any) -> Any:
    """Return a word with its lowest n bits set, n in 0..64."""
    return ALL >> np.uint64(64 - n) if n > 0 else U0


# ------------------------------------------------------------------------------------------- the table of tokens


@jit
def _short_key(a: Any, length: Any) -> Any:
    """Return the key of a token of at most 11 bytes: its first 8; the other 3 with its length + 1. No token has a longer one's."""
    rest = _load(a + 8) & ((U1 << np.uint64(8 * min(max(length - 8, 0), 3))) - U1)
    return _load(a) & _first(8 * min(length, 8)), rest | np.uint64(min(length, SHORT + 1) + 1) << U24


@jit
def _long_key(a: Any, length: Any) -> Any:
    h = np.uint64(length)
    for q in range(0, length, 8):
        h = (h ^ _load(a + q) & _first(8 * min(length - q, 8))) * MIX
        h ^= h >> U32
    return h, LONG


@jit
def _equal(a: Any, length: Any, table: Any, token: Any) -> bool:
    start = _field(_field(table + ENDS) + 8 * token)
    if _field(_field(table + ENDS) + 8 * token + 8) - start != length:
        return False
    b = _field(table + ARENA) + start
    for q in range(0, length, 8):  # noqa: SIM110 (numba compiles no generators)
        if (_load(a + q) ^ _load(b + q)) & _first(8 * min(length - q, 8)) != U0:
            return False
    return True


@jit
def _slot(first: Any, rest: Any, mask: Any) -> Any:
    h = (first ^ rest * MIX2) * MIX
    return np.int64(h ^ h >> U32) & mask


@jit
def _add(a: Any, length: Any, first: Any, rest: Any, slot: Any, table: Any) -> Any:
    """Store a new token in an empty slot and return its id, or −1 when something must grow first."""
    token, ends = _field(table + SIZE), _field(table + ENDS)
    start = _field(ends + 8 * token)
    if token >= _field(table + MOST) or start + length > _field(table + ROOM):
        return -1
    b = _field(table + ARENA) + start
    for q in range(0, length, 8):
        _store(b + q, _load(a + q))
    _store(ends + 8 * (token + 1), np.uint64(start + length))
    _store(slot, first)
    _store(slot + 8, rest | np.uint64(token + 1) << U32)
    _store(table + SIZE, np.uint64(token + 1))
    return token


@jit
def _intern(a: Any, length: Any, table: Any) -> Any:
    """Return the id of the token of so many bytes at a, which is stored if it is new; −1 when there is no room.

    A slot is (first 8 bytes, id + 1 in the high half and the rest of the key in the low half); 0 is an empty slot.
    """
    first, rest = _short_key(a, length) if length <= SHORT else _long_key(a, length)
    mask = _field(table + MASK)
    p = _slot(first, rest, mask)
    while True:
        slot = _field(table + SLOTS) + 16 * p
        other = _load(slot + 8)
        if (_load(slot) ^ first) | ((other ^ rest) & LOW) == U0:
            token = np.int64(other >> U32) - 1
            if length <= SHORT or _equal(a, length, table, token):
                return token
        if other == U0:
            return _add(a, length, first, rest, slot, table)
        p = (p + 1) & mask


@jit
def _intern_all(text: Any, spans: Any, k: Any, n: Any, table: Any, out: Any) -> Any:
    """Write the ids of spans k … n − 1; return where there was no more room.

    First all short tokens of a batch that sit in their own slot, without one branch: the loads of many tokens overlap. Then, in
    order, the others: new, long or displaced ones.
    """
    missed = np.empty(BATCH, np.int64)
    while k < n:
        slots, mask, m = _field(table + SLOTS), _field(table + MASK), U0
        some, ids = spans[k : min(k + BATCH, n)], out[k : min(k + BATCH, n)]
        for j in range(some.size):  # from 0, and m unsigned: no index could be one from the end
            first, rest = _short_key(text + np.int64(some[j] >> U32), np.int64(some[j] & LOW))
            slot = slots + 16 * _slot(first, rest, mask)
            other = _load(slot + 8)
            ids[j] = np.int64(other >> U32) - 1
            missed[m] = j
            m += np.uint64((_load(slot) ^ first) | ((other ^ rest) & LOW) != U0)
        for j in missed[:m]:
            ids[j] = _intern(text + np.int64(some[j] >> U32), np.int64(some[j] & LOW), table)
            if ids[j] < 0:
                return k + j
        k += some.size
    return n


@jit
def _rehash(old: Any, new: Any) -> None:
    mask = new.shape[0] - 1
    for q in range(old.shape[0]):
        if old[q, 1] != U0:
            p = _slot(old[q, 0], old[q, 1] & LOW, mask)
            while new[p, 1] != U0:
                p = (p + 1) & mask
            new[p, 0], new[p, 1] = old[q, 0], old[q, 1]


class Vocabulary:
    """Tokens and their ids 0, 1, … in order of first appearance. It grows; one thread writes to it at a time.

    ``arrays()`` can be saved (``np.savez(path, data=…, offsets=…)``) and given to ``Vocabulary(data, offsets)`` again.
    """

    def __init__(self, data: np.ndarray | None = None, offsets: np.ndarray | None = None) -> None:
        self._slots = np.zeros((1 << 12, 2), np.uint64)
        self._arena = np.zeros(1 << 14, np.uint8)
        self._ends = np.zeros(1 << 11, np.int64)
        self._header = np.zeros(7, np.int64)
        self._describe()
        if data is not None and offsets is not None:
            ids = self.add(data, offsets)
            if not np.array_equal(ids, np.arange(len(ids))):
                raise ValueError(f"tokens of a vocabulary must be distinct; got {len(ids)} tokens, {len(self)} of them distinct")

    def __len__(self) -> int:
        return int(self._header[-1])

    @property
    def tokens(self) -> list[str]:
        """Tokens in order of their ids."""
        data, offsets = self.arrays()
        whole = data.tobytes()
        return [whole[a:b].decode() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens' UTF-8 (uint8) and offsets (int64, tokens + 1)."""
        offsets = self._ends[: len(self) + 1].copy()
        return self._arena[: offsets[-1]].copy(), offsets

    @np.errstate(over="ignore")  # 64-bit products wrap, also in plain Python
    def add(self, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return the ids (int32) of the given tokens; new ones are added. Tokens are taken as they are, in any case."""
        data, offsets = _checked(data, offsets)
        out = np.empty(len(offsets) - 1, np.int32)
        for first, after in _chunks(offsets):
            base = int(offsets[first])
            text = np.concatenate([data[base : offsets[after]], np.zeros(BLOCK, np.uint8)])
            spans = (offsets[first:after] - base).astype(np.uint64) << U32 | np.diff(offsets[first : after + 1]).astype(np.uint64)
            self.intern(text, spans, len(spans), out[first:after])
        return out

    def intern(self, text: np.ndarray, spans: np.ndarray, n: int, out: np.ndarray) -> None:
        """Write the ids of n tokens, ``start << 32 | length`` in text that is readable for a block past its end."""
        done = 0
        while (done := _intern_all(text.ctypes.data, spans, done, n, self._header.ctypes.data, out)) < n:
            self._grow(int(spans[done] & LOW))

    def _grow(self, length: int) -> None:
        """Make room for a token of so many bytes where room is short."""
        used, n = int(self._ends[len(self)]), len(self)
        if used + length > len(self._arena) - BLOCK:
            self._arena = _enlarged(self._arena, used + length + BLOCK)
        if n >= len(self._ends) - 1:
            self._ends = _enlarged(self._ends, n + 2)
        if 2 * n >= len(self._slots):
            slots = np.zeros((2 * len(self._slots), 2), np.uint64)
            _rehash(self._slots, slots)
            self._slots = slots
        self._describe()

    def _describe(self) -> None:
        most = min(len(self._slots) // 2, len(self._ends) - 1)
        arena = self._arena
        self._header[:-1] = self._slots.ctypes.data, len(self._slots) - 1, arena.ctypes.data, len(arena) - BLOCK, self._ends.ctypes.data, most


def _enlarged(array: np.ndarray, least: int) -> np.ndarray:
    out = np.zeros(2 * max(least, len(array)), array.dtype)
    out[: len(array)] = array
    return out


# ------------------------------------------------------------------------------------------- tokens


@jit
def _code_point(a: int) -> Any:
    """Return (code point, bytes) of the character ≥ 0x80 at a."""
    c, d = _byte(a), _byte(a + 1) & 0x3F
    if c < 0xE0:
        return (c & 0x1F) << 6 | d, 2
    d = d << 6 | _byte(a + 2) & 0x3F
    if c < 0xF0:
        return (c & 0x0F) << 12 | d, 3
    return (c & 0x07) << 18 | d << 6 | _byte(a + 3) & 0x3F, 4


@jit
def _foreign(a: int, n: int, leads: Any, classes: int) -> Any:
    """Return bits of (digits, other word characters, Hangul) ≥ 0x80 in n bytes at a, and how many bytes are whole characters."""
    digits, words, hangul = U0, U0, U0
    while leads != U0:
        p = _zeros(leads)
        leads &= leads - U1
        point, width = _code_point(a + p)
        if p + width > n:
            return digits, words, hangul, p
        bits, kind = _first(width) << np.uint64(p), _byte(classes + point)
        if kind == DIGIT:
            digits |= bits
        elif kind == HANGUL:
            hangul |= bits
        elif kind == WORD:
            words |= bits
    return digits, words, hangul, n


@jit
def _class_at(a: int, stop: int, classes: int) -> Any:
    """Return (class, bytes) of the character at a; the end of the document is (OTHER, 1)."""
    if a >= stop:
        return OTHER, 1
    c = _byte(a)
    if c >= 0x80:
        point, width = _code_point(a)
        return _byte(classes + point), width
    if 97 <= c | 0x20 <= 122:
        return LETTER, 1
    return (DIGIT, 1) if 48 <= c <= 57 else (WORD if c == 95 else OTHER, 1)


@jit
def _run_end(a: int, stop: int, classes: int) -> int:
    """Return where the run of characters of one class that starts at a ends."""
    kind, width = _class_at(a, stop, classes)
    here = kind
    while a < stop and here == kind:
        a += width
        here, width = _class_at(a, stop, classes)
    return a


@jit
def _long_token(a: int, stop: int, extended: bool, classes: int) -> Any:
    """Return (end, whether it is a token) of a run at a that does not end within a block."""
    kind, _ = _class_at(a, stop, classes)
    end = _run_end(a, stop, classes)
    after, _ = _class_at(end, stop, classes)
    if not extended:
        return end, kind == DIGIT or after == OTHER
    if kind == DIGIT and end < stop and _byte(end) == 46 and _class_at(end + 1, stop, classes)[0] == DIGIT:
        end = _run_end(end + 1, stop, classes)
    return end, True


@jit
def _won(a: int, begin: int) -> int:
    """Return how many bytes before the number at a are a ₩ or ￦."""
    if a < begin + 3:
        return 0
    sign = _load(a - 3) & np.uint64(0xFFFFFF)
    return 3 if sign in (WON, WIDE_WON) else 0


@jit
def _find(text: int, offsets: Any, extended: bool, classes: int, spans: Any, doc_ends: Any) -> Any:
    """Write the spans of all tokens, ``start << 32 | length``, and how many there are up to each document's end; return how many.

    A block that ends inside a token is read again from that token's start: no state crosses blocks but whether the
    character before is a word character.
    """
    k = U0
    for d in range(offsets.size - 1):
        begin, stop, before = text + offsets[d], text + offsets[d + 1], U0
        a = begin
        while a < stop:
            n = min(BLOCK, stop - a)
            letters, digits, words, hangul = _matches(a, 97, 26), _matches(a, 48, 10), _matches(a, 95, 1), U0
            dollars, singles, points = _matches(a, 36, 1), U0, U0
            leads = _matches(a, 0xC0, 0x40) & _first(n)
            if leads != U0:
                more_digits, more_words, hangul, n = _foreign(a, n, leads, classes)
                digits, words = digits | more_digits, words | more_words
            last = a + n == stop
            if not last and dollars >> np.uint64(n - 1) & U1 != U0:
                n -= 1
            valid = _first(n)
            letters, digits, hangul = letters & valid, digits & valid, hangul & valid
            words = (words | letters | digits | hangul) & valid
            signs = dollars & digits >> U1  # a $ that begins a number
            starts = digits & ~((digits | signs) << U1) | signs
            if extended:
                singles = (dollars & ~signs | _matches(a, 37, 1)) & valid
                points = _matches(a, 46, 1) & digits >> U1
                starts |= letters & ~(letters << U1) | hangul & ~(hangul << U1) | singles
            else:
                starts |= letters & ~(words << U1 | before)
            following, limit = a + n, BLOCK + 1 if last else (n - 1 if extended else n)
            before = words >> np.uint64(n - 1)
            while starts != U0:
                s = _zeros(starts)
                starts &= starts - U1
                at, sign = U1 << np.uint64(s), np.int64(signs >> np.uint64(s) & U1)
                run = letters if letters & at != U0 else digits
                if extended and (hangul | singles) & at != U0:
                    run = hangul if hangul & at != U0 else at
                e = s + sign
                e += _zeros(~(run >> np.uint64(e)))
                if extended and e < 63 and points >> np.uint64(e) & digits >> np.uint64(e - 1) & U1 != U0:
                    e += 1 + _zeros(~(digits >> np.uint64(e + 1)))
                    starts &= ~_first(e)
                b, end, token = a + s, a + e, True
                if e >= limit and singles & at == U0:
                    following, before = b, U0
                    if s > 0:
                        break
                    end, token = _long_token(b + sign, stop, extended, classes)
                    following, starts, before = end, U0, U1
                elif not extended:
                    token = letters & at & -(words >> U1 >> np.uint64(e - 1) & U1) == U0
                if extended and classes != 0 and digits & at != U0:
                    b -= _won(b, begin)
                spans[k] = np.uint64(b - text) << U32 | np.uint64(end - b)
                k += np.uint64(token)
            a = following
        doc_ends[d + 1] = k
    return np.int64(k)


@jit
def _lower(text: Any) -> None:
    for i in range(text.size):
        c = text[i]
        text[i] = c | np.uint8(32 * (np.uint8(c - np.uint8(65)) < 26))


@jit
def _are_ascii(data: Any, offsets: Any) -> Any:
    out = np.empty(offsets.size - 1, np.bool_)
    for d in range(out.size):
        text, seen = data[offsets[d] : offsets[d + 1]], np.uint8(0)
        for i in range(text.size):
            seen |= text[i]
        out[d] = seen < 0x80
    return out


@cache
def _classes() -> np.ndarray:
    """Return the class of each code point, as Python's ``re`` sees it."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    out = np.zeros(len(every), np.uint8)
    for kind, pattern in ((WORD, r"\w+"), (DIGIT, r"\d+"), (HANGUL, "[\uac00-\ud7a3]+")):
        for found in re.finditer(pattern, every):
            out[found.start() : found.end()] = kind
    return out


def _checked(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    data, offsets = np.asarray(data), np.asarray(offsets)
    if data.dtype != np.uint8 or data.ndim != 1 or offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer):
        raise ValueError(f"text must be a flat uint8 array with flat integer offsets; got {data.dtype} {data.shape}, {offsets.dtype} {offsets.shape}")
    offsets = np.ascontiguousarray(offsets, np.int64)
    if len(offsets) == 0 or offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from ≥ 0 to ≤ {len(data)} (bytes of text); got {offsets[:1]} … {offsets[-1:]}, {len(offsets)} of them")
    if (longest := int(np.diff(offsets).max(initial=0))) >= 1 << 31:
        raise ValueError(f"a document must be below 2 GiB; got {longest} bytes")
    return np.ascontiguousarray(data), offsets


def _chunks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges of documents of about CHUNK bytes, at least one document each."""
    first = 0
    while first < len(offsets) - 1:
        after = int(np.searchsorted(offsets, offsets[first] + CHUNK, side="right")) - 1
        yield first, (first := min(max(after, first + 1), len(offsets) - 1))


def _lowered(data: np.ndarray, offsets: np.ndarray, scratch: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return documents as Python would lower-case them: (text that kernels may read past, offsets, whether all is ASCII)."""
    foreign, sizes = np.flatnonzero(~_are_ascii(data, offsets)).tolist(), np.diff(offsets)
    lowered = [data[offsets[d] : offsets[d + 1]].tobytes().decode().lower().encode() for d in foreign]
    sizes[foreign] = [len(text) for text in lowered]
    new = np.concatenate([[0], np.cumsum(sizes)])
    if len(scratch) < new[-1] + BLOCK:
        scratch = np.zeros(2 * int(new[-1]) + BLOCK, np.uint8)
    done = 0
    for d, text in zip(foreign, lowered, strict=True):
        scratch[new[done] : new[d]] = data[offsets[done] : offsets[d]]
        scratch[new[d] : new[d + 1]] = np.frombuffer(text, np.uint8)
        done = d + 1
    scratch[new[done] : new[-1]] = data[offsets[done] : offsets[-1]]
    _lower(scratch[: new[-1]])
    return scratch, new, not foreign


@np.errstate(over="ignore")
def tokenise(data: np.ndarray, offsets: np.ndarray, vocabulary: Vocabulary, pattern: str = "simple") -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all tokens (int32) and where each document's ends (int64, documents + 1, from 0).

    Parameters
    ----------
    data, offsets: valid UTF-8 (uint8) and documents + 1 rising offsets into it
    vocabulary: where new tokens are added, in order of appearance
    pattern: ``simple``, ``extended`` (see ``PATTERNS``) or any regular expression, whose whole matches are the tokens.
        Matches are those in the text's lower case: ``re.findall(pattern, text.lower())``. Only the named ones are fast.

    Raises
    ------
    ValueError: arrays of another kind; offsets that fall or leave the text; text that is not UTF-8 (UnicodeDecodeError)
    """
    data, offsets = _checked(data, offsets)
    if pattern not in PATTERNS:
        return _matched(data, offsets, vocabulary, pattern)
    doc_ends, k = np.zeros(len(offsets), np.int64), 0
    out = np.empty(int(offsets[-1] - offsets[0]) // 4 + 1, np.int32)
    scratch, spans = np.zeros(0, np.uint8), np.zeros(0, np.uint64)
    for first, after in _chunks(offsets):
        scratch, within, ascii = _lowered(data, offsets[first : after + 1], scratch)
        if len(spans) <= within[-1]:
            spans = np.empty(int(within[-1]) + CHUNK + 1, np.uint64)
        chunk_ends = doc_ends[first : after + 1]
        chunk_ends[0] = 0
        classes = 0 if ascii else _classes().ctypes.data
        n = _find(scratch.ctypes.data, within, pattern == "extended", classes, spans, chunk_ends)
        chunk_ends += k
        if len(out) < k + n:
            out.resize(k + n + len(out) // 2, refcheck=False)
        vocabulary.intern(scratch, spans, n, out[k : k + n])
        k += n
    out.resize(k, refcheck=False)
    return out, doc_ends


def _matched(data: np.ndarray, offsets: np.ndarray, vocabulary: Vocabulary, pattern: str) -> tuple[np.ndarray, np.ndarray]:
    rule, words, doc_ends = re.compile(pattern), [], [0]
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        words += [found.group().encode() for found in rule.finditer(data[a:b].tobytes().decode().lower())]
        doc_ends.append(len(words))
    stops = np.cumsum([0, *map(len, words)])
    return vocabulary.add(np.frombuffer(b"".join(words), np.uint8), stops), np.array(doc_ends, np.int64)


def pack(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return texts as UTF-8 bytes and offsets (documents + 1, int64); what has no UTF-8 becomes ``?``."""
    encoded = [t.encode("utf-8", "replace") for t in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.concatenate([[0], np.cumsum([len(e) for e in encoded])]).astype(np.int64)
