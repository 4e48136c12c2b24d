r"""Words of texts: exact tokens of two patterns over UTF-8 bytes and offsets, and their counts per group of documents.

``simple`` gives the tokens of ``re.findall(r"\$?\d+|\b[a-zA-Z]+\b", text.lower())``, ``extended`` those of
``(?:[$₩￦]?\d+(?:\.\d+)?)|[\uac00-\ud7a3]+|[a-zA-Z]+|[%$]``; any other pattern goes through :mod:`re`.

Documents of ASCII are scanned eight bytes at a time: the letters of a word are found by arithmetic on all bytes at once and
lower-cased by setting one bit, and a token of up to sixteen bytes is its own key in the table. Other documents are lower-cased
by Python; where what is not ASCII can only separate words it is replaced by a character that does the same, else :mod:`re`
reads them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from codi_engine.kernels.accelerate import ENABLED, inline, jit

PATTERNS = {
    "simple": r"\$?\d+|\b[a-zA-Z]+\b",
    "extended": r"(?:[$₩￦]?\d+(?:\.\d+)?)|[\uac00-\ud7a3]+|[a-zA-Z]+|[%$]",
}
#: bytes behind the last document, so that eight can always be loaded
PAD = 16
_ONES = 0x0101010101010101

if ENABLED:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def load8(typingctx, data, at):
        """Return the eight bytes at a position as one number, little-endian, without alignment."""

        def codegen(context, builder, signature, args):
            array = context.make_array(signature.args[0])(context, builder, args[0])
            pointer = builder.gep(array.data, [args[1]])
            wide = builder.bitcast(pointer, ir.IntType(64).as_pointer())
            loaded = builder.load(wide)
            loaded.align = 1
            return loaded

        return types.uint64(data, types.int64), codegen

    @intrinsic
    def load1(typingctx, data, at):
        """Return one byte; unlike indexing, positions are not checked for being negative."""

        def codegen(context, builder, signature, args):
            array = context.make_array(signature.args[0])(context, builder, args[0])
            return builder.zext(builder.load(builder.gep(array.data, [args[1]])), ir.IntType(64))

        return types.int64(data, types.int64), codegen

    @intrinsic
    def first_set(typingctx, x):
        """Return the position of the lowest set bit of a number that is not zero."""

        def codegen(context, builder, signature, args):
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

        return types.uint64(types.uint64), codegen
else:

    def load8(data, at):
        return np.uint64(int.from_bytes(data[at : at + 8].tobytes(), "little"))

    def load1(data, at):
        return int(data[at])

    def first_set(x):
        return np.uint64((int(x) & -int(x)).bit_length() - 1)


# ---------------------------------------------------------------------------------------------- vocabulary


class Vocabulary:
    """Tokens with ids in order of their first appearance; grows as it is used.

    Not for use by two threads at a time: give each its own and :meth:`map_to` one of them.
    """

    def __init__(self) -> None:
        self.size = 0
        #: open addressing: two words of the token (or its hash), then length << 32 | id + 1 (0: free)
        self.table = np.zeros((1 << 12, 3), np.uint64)
        self.arena = np.empty(1 << 15, np.uint8)
        self.ends = np.zeros(1 << 11, np.int64)

    @property
    def tokens(self) -> list[str]:
        """Return the tokens by id."""
        whole, ends = self.arena[: self.ends[self.size]].tobytes(), self.ends[: self.size + 1].tolist()
        return [whole[a:b].decode() for a, b in itertools.pairwise(ends)]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (bytes, offsets) of the tokens, to be kept; :meth:`of` makes a vocabulary of them."""
        return self.arena[: self.ends[self.size]].copy(), self.ends[: self.size + 1].copy()

    @classmethod
    def of(cls, data: np.ndarray, offsets: np.ndarray) -> Vocabulary:
        """Return the vocabulary that :meth:`arrays` described."""
        out = cls()
        out.add(data, offsets)
        return out

    def add(self, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Add tokens (bytes, offsets) and return their ids, int32."""
        padded = np.concatenate([np.asarray(data, np.uint8), np.zeros(PAD, np.uint8)])
        offsets = np.ascontiguousarray(offsets, np.int64)
        ids = np.empty(max(len(offsets) - 1, 0), np.int32)
        self.reserve(len(ids), len(data))
        self.size = intern_all(padded, offsets, self.table, self.arena, self.ends, self.size, ids)
        return ids

    def map_to(self, other: Vocabulary) -> np.ndarray:
        """Add all tokens to another vocabulary and return the other's id of each."""
        return other.add(*self.arrays())

    def reserve(self, tokens: int, size: int) -> None:
        """Make room for so many more tokens and bytes."""
        need = self.size + tokens + 2
        if need > len(self.ends):
            self.ends = np.concatenate([self.ends, np.zeros(max(need, 2 * len(self.ends)) - len(self.ends), np.int64)])
        used = int(self.ends[self.size])
        if used + size > len(self.arena):
            self.arena = np.concatenate([self.arena, np.empty(max(used + size, 2 * len(self.arena)) - len(self.arena), np.uint8)])
        if 2 * need > len(self.table):
            slots = 1 << int(2 * need - 1).bit_length()
            bigger = np.zeros((slots, 3), np.uint64)
            rehash(self.table, bigger)
            self.table = bigger


def pack(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return texts as UTF-8 bytes and offsets (documents + 1, int64)."""
    encoded = [t.encode("utf-8", "replace") for t in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.concatenate([[0], np.cumsum([len(e) for e in encoded])]).astype(np.int64)


# ------------------------------------------------------------------------------------------------ counting


@dataclass
class Counts:
    """Words of groups, sparse: group g owns entries ``ptr[g]`` to ``ptr[g + 1]``; after :func:`merge_counts` words ascend.

    Attributes
    ----------
    word: ids
    count: how often the group's documents have it
    documents: how many of them have it
    total, size: per group its tokens and its documents
    """

    ptr: np.ndarray
    word: np.ndarray
    count: np.ndarray
    documents: np.ndarray
    total: np.ndarray
    size: np.ndarray


def count(ids: np.ndarray, ends: np.ndarray, groups: np.ndarray, group_count: int, words: int) -> Counts:
    """Count words per group of documents.

    Parameters
    ----------
    ids, ends: what :func:`tokenise` returned
    groups: group of each document, int; −1 leaves it out. Documents of a group need not be neighbours
    words: ids are below it
    """
    groups = np.asarray(groups)
    order = np.arange(len(groups)) if len(groups) == 0 or (groups[1:] >= groups[:-1]).all() else np.argsort(groups, kind="stable")
    order = order[groups[order] >= 0]
    bounds = np.searchsorted(groups[order], np.arange(group_count + 1))
    most = int((ends[order + 1] - ends[order]).sum())
    word, times, documents = np.empty(most + 1, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    ptr = np.zeros(group_count + 1, np.int64)
    seen = np.zeros((words, 4), np.int32)
    count_groups(ids, ends, order, bounds, seen, word, times, documents, ptr)
    kept = ptr[-1]
    tokens = np.bincount(groups[order], (ends[order + 1] - ends[order]).astype(np.float64), group_count).astype(np.int64)
    return Counts(ptr, word[:kept].copy(), times[:kept].copy(), documents[:kept].copy(), tokens, np.diff(bounds))


def merge_counts(parts: Sequence[Counts], maps: Sequence[np.ndarray] | None = None) -> Counts:
    """Return the sum of counts of the same groups, words ascending; ``maps`` gives for each part its ids' common ids."""
    mapped = [np.asarray(p.word if maps is None else maps[i][p.word], np.int32) for i, p in enumerate(parts)]
    word, times, documents = (np.concatenate(v) for v in (mapped, [p.count for p in parts], [p.documents for p in parts]))
    bases = np.concatenate([[0], np.cumsum([len(m) for m in mapped])])[:-1]
    ptrs = np.stack([p.ptr + b for p, b in zip(parts, bases, strict=True)])
    seen = np.zeros((int(word.max(initial=-1)) + 1, 2), np.int64)
    out = [np.empty(len(word), np.int32), np.empty(len(word), np.int64), np.empty(len(word), np.int64)]
    ptr = np.zeros(ptrs.shape[1], np.int64)
    merge_groups(word, times, documents, ptrs, seen, out[0], out[1], out[2], ptr)
    kept = int(ptr[-1])
    return Counts(ptr, out[0][:kept], out[1][:kept], out[2][:kept], np.sum([p.total for p in parts], 0), np.sum([p.size for p in parts], 0))


@jit
def merge_groups(word, times, documents, ptrs, seen, out_word, out_times, out_documents, ptr):
    """Add up the entries of each group over parts; ``seen`` (words × 2, zero) is zero again afterwards."""
    parts, groups = ptrs.shape
    n = 0
    for g in range(groups - 1):
        begin = n
        for p in range(parts):
            for k in range(ptrs[p, g], ptrs[p, g + 1]):
                w = word[k]
                row = seen[w]
                out_word[n] = w
                n += row[0] == 0
                row[0] += times[k]
                row[1] += documents[k]
        found = n - begin
        if found * 40 < seen.shape[0]:
            out_word[begin:n] = np.sort(out_word[begin:n])
        else:  # walking through all words is cheaper than sorting those that there are
            at = begin
            for w in range(seen.shape[0]):
                out_word[at] = w
                at += seen[w, 0] != 0
                if at == n:
                    break
        for k in range(begin, n):
            row = seen[out_word[k]]
            out_times[k] = row[0]
            out_documents[k] = row[1]
            row[0] = 0
            row[1] = 0
        ptr[g + 1] = n


def bigrams(ids: np.ndarray, ends: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return neighbouring pairs of kept words within documents, as first << 32 | second, and where each document's begin.

    Parameters
    ----------
    keep: words, bool; a pair with another word is left out, so that their number stays bounded
    """
    pairs = np.empty(max(len(ids), 1), np.int64)
    out = np.zeros(len(ends), np.int64)
    size = pair_up(ids, ends, keep, pairs, out)
    return pairs[:size].copy(), out


@jit
def count_groups(ids, ends, order, bounds, seen, word, times, documents, ptr):
    """Count words of each group's documents; ``seen`` (words × 4, zero) is zero again afterwards."""
    n = 0
    stamp = 0
    for g in range(bounds.size - 1):
        begin = n
        for k in range(bounds[g], bounds[g + 1]):
            d = order[k]
            stamp += 1
            for j in range(ends[d], ends[d + 1]):
                w = ids[j]
                row = seen[w]
                word[n] = w  # stays only if the word is new to the group; no branch that could be guessed wrongly
                n += row[0] == 0
                row[0] += 1
                row[1] += row[2] != stamp
                row[2] = stamp
        for j in range(begin, n):
            w = word[j]
            times[j] = seen[w, 0]
            documents[j] = seen[w, 1]
            seen[w, 0] = 0
            seen[w, 1] = 0
        ptr[g + 1] = n


@jit
def pair_up(ids, ends, keep, pairs, out):
    """Write pairs of neighbours; returns how many."""
    n = 0
    for d in range(ends.size - 1):
        for j in range(ends[d], ends[d + 1] - 1):
            if keep[ids[j]] and keep[ids[j + 1]]:
                pairs[n] = (np.int64(ids[j]) << 32) | np.int64(ids[j + 1])
                n += 1
        out[d + 1] = n
    return n


# ---------------------------------------------------------------------------------------------- tokenising


def tokenise(data: np.ndarray, offsets: np.ndarray, vocabulary: Vocabulary, pattern: str = "simple") -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, ends): the tokens of all documents, int32, and where each document's begin and end (documents + 1).

    Parameters
    ----------
    data, offsets: UTF-8 bytes and documents + 1 offsets
    pattern: ``simple``, ``extended`` or any regular expression; texts are lower-cased
    """
    offsets = np.ascontiguousarray(offsets, np.int64)
    count = len(offsets) - 1
    if pattern not in PATTERNS:
        return _by_regex(data, offsets, vocabulary, re.compile(pattern))
    first, last = (int(offsets[0]), int(offsets[-1])) if count > 0 else (0, 0)
    padded = np.concatenate([data[first:last], np.zeros(PAD, np.uint8)])
    offsets = offsets - first
    high = np.zeros(count, np.bool_)
    find_high(padded, offsets, high)
    odd = np.flatnonzero(high).tolist()
    if odd:
        padded, offsets, odd = _to_ascii(padded, offsets, odd, pattern)
    share = 2 if pattern == "simple" else 1
    ids = np.empty(int(offsets[-1]) // share + count + 8, np.int32)
    ends = np.zeros(count + 1, np.int64)
    at = 0
    for stop in [*odd, count]:
        at = _run(padded, offsets, at, stop, vocabulary, pattern == "extended", ids, ends)
        if stop < count:
            text = padded[offsets[stop] : offsets[stop + 1]].tobytes().decode("utf-8", "replace")
            found = vocabulary.add(*pack(re.findall(PATTERNS[pattern], text.lower())))
            need = int(ends[stop]) + len(found) + int(offsets[-1] - offsets[stop + 1]) // share + count + 8
            if need > len(ids):
                ids = np.concatenate([ids, np.empty(need - len(ids), np.int32)])
            ends[stop + 1] = ends[stop] + len(found)
            ids[ends[stop] : ends[stop + 1]] = found
            at = stop + 1
    return ids[: ends[count]].copy(), ends


def _run(data: np.ndarray, offsets: np.ndarray, at: int, stop: int, vocabulary: Vocabulary, extended: bool, ids: np.ndarray, ends: np.ndarray) -> int:
    """Tokenise ASCII documents; the vocabulary grows whenever the next document might not fit. Returns ``stop``."""
    while at < stop:
        longest = int(offsets[at + 1] - offsets[at])
        vocabulary.reserve(max(longest, 4096), max(longest, 1 << 15))
        at, vocabulary.size = scan(data, offsets, at, stop, extended, vocabulary.table, vocabulary.arena, vocabulary.ends, vocabulary.size, ids, ends)
    return stop


def _by_regex(data: np.ndarray, offsets: np.ndarray, vocabulary: Vocabulary, pattern: re.Pattern[str]) -> tuple[np.ndarray, np.ndarray]:
    whole = data.tobytes()
    bounds = offsets.tolist()
    found = [pattern.findall(whole[a:b].decode("utf-8", "replace").lower()) for a, b in itertools.pairwise(bounds)]
    flat = [t if isinstance(t, str) else next((g for g in t if g), "") for tokens in found for t in tokens]
    ends = np.concatenate([[0], np.cumsum([len(f) for f in found])]).astype(np.int64)
    return vocabulary.add(*pack(flat)), ends


class _Translation(dict[int, str]):
    """Character → one of ASCII that separates words in the same way; '' marks those that only :mod:`re` can judge."""

    def __init__(self, pattern: str) -> None:
        super().__init__({i: chr(i) for i in range(128)})
        self._simple = pattern == "simple"

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if re.match(r"\d", character) or (not self._simple and (character in "₩￦" or 0xAC00 <= code <= 0xD7A3)):
            self[code] = "\x80"
        else:
            self[code] = "_" if self._simple and re.match(r"\w", character) else " "
        return self[code]


@cache
def _translation(pattern: str) -> _Translation:
    return _Translation(pattern)


def _to_ascii(data: np.ndarray, offsets: np.ndarray, odd: list[int], pattern: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Replace documents that are not ASCII by equivalent ones that are; returns those left, which only :mod:`re` can read."""
    table, left = _translation(pattern), []
    sizes, parts, before = np.diff(offsets), [], 0
    for document in odd:
        begin, end = int(offsets[document]), int(offsets[document + 1])
        raw = data[begin:end].tobytes()
        text = raw.decode("utf-8", "replace").lower().translate(table)
        if "\x80" in text:
            left.append(document)
            continue
        parts += [data[before:begin], np.frombuffer(text.encode("ascii"), np.uint8)]
        sizes[document] = len(text)
        before = end
    parts.append(data[before:])
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), left


@jit
def find_high(data, offsets, high):
    """Mark documents that have a byte of 0x80 or more."""
    for d in range(offsets.size - 1):
        i, end = offsets[d], offsets[d + 1]
        found = np.uint64(0)
        while i + 8 <= end:
            found |= load8(data, i)
            i += 8
        while i < end:
            found |= np.uint64(data[i])
            i += 1
        high[d] = (found & np.uint64(0x8080808080808080)) != np.uint64(0)


@inline
def _slot(k0, k1, bits):
    """Return the slot of a key (Fibonacci hashing: the upper bits of a product)."""
    return (k0 ^ (k1 * np.uint64(0x9FB21C651E98DF25)) ^ (k0 >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) >> bits


@inline
def _find(data, at, length, k0, k1, lower, table, bits, arena, ends, size):
    """Return a token's id, which is ``size`` when it is new (and has been entered)."""
    last = np.uint64(table.shape[0] - 1)
    p = _slot(k0, k1, bits)
    number = np.int64(-1)
    while number < 0:
        tag = table[p, 2]
        if table[p, 0] == k0 and table[p, 1] == k1 and (tag >> np.uint64(32)) == np.uint64(length) and tag != np.uint64(0):
            number = np.int64(tag & np.uint64(0xFFFFFFFF)) - 1
            if length > 16:
                a = ends[number]
                for j in range(length):
                    if arena[a + j] != data[at + j] | lower:
                        number = np.int64(-1)
                        break
        elif tag == np.uint64(0):
            table[p, 0] = k0
            table[p, 1] = k1
            table[p, 2] = (np.uint64(length) << np.uint64(32)) | np.uint64(size + 1)
            a = ends[size]
            for j in range(length):
                arena[a + j] = data[at + j] | lower
            ends[size + 1] = a + length
            number = size
        p = (p + np.uint64(1)) & last
    return number


@inline
def _keys(data, at, length, lower):
    """Return two words that stand for a token: its bytes, or hashes of more than sixteen."""
    if length <= 8:
        k0 = (load8(data, at) | lower) & (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * length))
        return k0, np.uint64(0)
    k0 = load8(data, at) | lower
    if length <= 16:
        return k0, (load8(data, at + 8) | lower) & (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(128 - 8 * length))
    k1 = np.uint64(14695981039346656037)
    for j in range(0, length - 8, 8):
        word = load8(data, at + j) | lower
        k0 = (k0 ^ word) * np.uint64(0x9E3779B97F4A7C15)
        k1 = (k1 ^ word) * np.uint64(1099511628211)
        k0 ^= k0 >> np.uint64(29)
    word = load8(data, at + length - 8) | lower
    return (k0 ^ word) * np.uint64(0x9E3779B97F4A7C15), (k1 ^ word) * np.uint64(1099511628211)


@inline
def _letters(data, at):
    """Return how many letters (A–Z, a–z) begin at a position of ASCII bytes."""
    i = at
    while True:
        y = load8(data, i) | np.uint64(0x2020202020202020)
        low = y + np.uint64(0x1F1F1F1F1F1F1F1F)
        above = y + np.uint64(0x0505050505050505)
        other = ~(low & ~above) & np.uint64(0x8080808080808080)
        if other != np.uint64(0):
            return i - at + np.int64(first_set(other) >> np.uint64(3))
        i += 8


@jit
def intern_all(data, offsets, table, arena, ends, size, ids):
    """Enter tokens as they are; returns the size of the vocabulary."""
    bits = np.uint64(64) - first_set(np.uint64(table.shape[0]))
    for d in range(offsets.size - 1):
        at, length = offsets[d], offsets[d + 1] - offsets[d]
        k0, k1 = np.uint64(0), np.uint64(0)
        if length > 0:
            k0, k1 = _keys(data, at, length, np.uint64(0))
        number = _find(data, at, length, k0, k1, np.uint8(0), table, bits, arena, ends, size)
        if number == size:
            size += 1
        ids[d] = number
    return size


@jit
def rehash(old, new):
    """Move the entries of a table to a larger one."""
    last = np.uint64(new.shape[0] - 1)
    bits = np.uint64(64) - first_set(np.uint64(new.shape[0]))
    for i in range(old.shape[0]):
        if old[i, 2] != np.uint64(0):
            p = _slot(old[i, 0], old[i, 1], bits)
            while new[p, 2] != np.uint64(0):
                p = (p + np.uint64(1)) & last
            for j in range(3):
                new[p, j] = old[i, j]


@inline
def _wordlike(c):
    """True for letters and the underscore."""
    return 97 <= (c | 0x20) <= 122 or c == 95


@jit
def scan(data, offsets, at, stop, extended, table, arena, ends, size, ids, out):
    """Tokenise ASCII documents until ``stop`` or until one might not fit; returns (next document, size of the vocabulary)."""
    lower = np.uint64(0x2020202020202020)
    bits = np.uint64(64) - first_set(np.uint64(table.shape[0]))
    n = out[at]
    for d in range(at, stop):
        i, end = offsets[d], offsets[d + 1]
        room = end - i
        if 2 * (size + room + 1) > table.shape[0] or size + room + 1 >= ends.size or ends[size] + room > arena.size:
            return d, size
        while i < end:
            word = load8(data, i)
            y = word | lower
            other = ~((y + np.uint64(0x1F1F1F1F1F1F1F1F)) & ~(y + np.uint64(0x0505050505050505))) & np.uint64(0x8080808080808080)
            begin = i
            length = np.int64(first_set(other) >> np.uint64(3)) if other != np.uint64(0) else np.int64(8)
            k0, k1 = y, np.uint64(0)
            token = False
            if length > 0 and i + length < end:
                if length == 8:
                    length = min(8 + _letters(data, i + 8), end - i)
                after = load1(data, i + length) if i + length < end else np.int64(32)
                i += length
                if extended or not (after == 95 or 48 <= after <= 57):
                    token = True
                    if length < 8:
                        k0 = y & ((np.uint64(1) << np.uint64(8 * length)) - np.uint64(1))
                        i += after == 32
                    else:
                        k0, k1 = _keys(data, begin, length, lower)
            elif length > 0:  # the document ends here; letters beyond it are not its own
                length = end - i
                i = end
                token = True
                k0, k1 = _keys(data, begin, length, lower)
            else:
                c = np.int64(word & np.uint64(0xFF))
                if c == 36 and i + 1 < end and 48 <= load1(data, i + 1) <= 57:
                    i += 1
                    token = True
                elif 48 <= c <= 57:
                    token = True
                if token:
                    while i < end and 48 <= load1(data, i) <= 57:
                        i += 1
                    if extended and i + 1 < end and load1(data, i) == 46 and 48 <= load1(data, i + 1) <= 57:
                        i += 1
                        while i < end and 48 <= load1(data, i) <= 57:
                            i += 1
                else:
                    i += 1
                    token = extended and (c == 36 or c == 37)
                    if c == 95 and not extended:  # a word that begins with an underscore has no letter tokens
                        while i < end and _wordlike(load1(data, i)):
                            i += 1
                if token:
                    length = i - begin
                    k0, k1 = _keys(data, begin, length, lower)
                    if not extended:  # letters right behind digits belong to the same word and are no tokens
                        while i < end and _wordlike(load1(data, i)):
                            i += 1
            if token:
                number = _find(data, begin, length, k0, k1, np.uint8(0x20), table, bits, arena, ends, size)
                size += number == size
                ids[n] = number
                n += 1
            elif length > 0:  # letters before a digit or underscore: the word's letters are no tokens
                while i < end and _wordlike(load1(data, i)):
                    i += 1
        out[d + 1] = n
    return stop, size
