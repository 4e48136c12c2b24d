"""The tokeniser is the regular expression, on any text; counts are those of a Counter."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine.kernels.counts import bigrams, count, merge_counts
from codi_engine.kernels.words import PATTERNS, Vocabulary, pack, tokenise

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
NASTY = [
    *"abZ_$$19 -'.%`@[{\x00\n",
    "é",
    "\u212a",
    "İ",
    "ſ",
    "\u0663",
    "x\u0300",
    "\u0301",
    "中",
    "\U0001d7d9",
    "ß",
    "Ǆ",
    "²",
    "½",
    "Ⅷ",
    "\u200d",
    "ﬁ",
    "가",
    "₩",
    "￦",
]


def tokens(texts: list[str], pattern: str) -> list[list[str]]:
    vocabulary = Vocabulary()
    ids, ends = tokenise(*pack(texts), vocabulary, pattern)
    names = vocabulary.tokens
    assert len(set(names)) == len(names)
    return [[names[i] for i in ids[a:b]] for a, b in itertools.pairwise(ends)]


def naive(texts: list[str], pattern: str) -> list[list[str]]:
    return [re.findall(PATTERNS.get(pattern, pattern), t.lower()) for t in texts]


@pytest.mark.parametrize("pattern", ["simple", "extended"])
@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(st.text(max_size=30), st.lists(st.sampled_from(NASTY), max_size=30).map("".join), st.text(st.sampled_from("abC $1_.9%"), max_size=40)),
        max_size=12,
    )
)
def test_equals_the_expression(pattern: str, texts: list[str]) -> None:
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    assert tokens(texts, pattern) == naive(texts, pattern)


def wild(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return "".join(rng.choice(NASTY) for _ in range(rng.randrange(25)))
    if kind < 0.6:
        ranges = [(32, 127), (128, 0x250), (0x370, 0x600), (0x900, 0xD00), (0x1D400, 0x1D800), (0xE000, 0x110000)]
        return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(30)))
    return "".join(rng.choice("abcdeXYZ $1_.9%") for _ in range(rng.randrange(60)))


def differ(count: int, seed: int) -> None:
    rng = random.Random(seed)
    texts = [wild(rng) for _ in range(count)]
    for pattern in PATTERNS:
        got, want = tokens(texts, pattern), naive(texts, pattern)
        assert [t for t, a, b in zip(texts, got, want, strict=True) if a != b] == []


def test_random_texts() -> None:
    differ(20_000, 0)


@pytest.mark.slow
def test_a_million_random_texts() -> None:
    for seed in range(1, 11):
        differ(100_000, seed)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("pattern", ["simple", "extended"])
def test_every_shared_text(pattern: str) -> None:
    def strings(value: object) -> list[str]:
        if isinstance(value, str):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [s for part in parts for s in strings(part)]

    for file in SHARED.glob("*.json*"):
        records = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else json.loads(file.read_text())
        texts = strings(records)
        assert tokens(texts, pattern) == naive(texts, pattern), file.name


@pytest.mark.parametrize("pattern", [r"\w+", r"([a-z])([0-9])?", r"[aeiou]"])
def test_any_other_expression(pattern: str) -> None:
    texts = ["Hello wörld", "", "a1 b2"]
    want = [[m.group() for m in re.finditer(pattern, t.lower())] for t in texts]
    assert tokens(texts, pattern) == want


def test_edges() -> None:
    long = "q" * 1_000_000
    texts = ["", long, f"{long} x", "x" * 8, "x" * 9, "x" * 16, "x" * 17, "12345678901234567890", "$" * 40, "\x00a\x00", "a" * 7 + "_", "ab", "cd"]
    for pattern in PATTERNS:
        assert tokens(texts, pattern) == naive(texts, pattern)
    assert tokens([], "simple") == []


def test_the_vocabulary_grows_and_is_rebuilt() -> None:
    rng = random.Random(1)
    texts = [" ".join("".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randrange(1, 24))) for _ in range(300)) for _ in range(200)]
    vocabulary = Vocabulary()
    ids, _ = tokenise(*pack(texts), vocabulary)
    assert len(vocabulary) > 20_000
    again = Vocabulary(*vocabulary.arrays())
    assert again.tokens == vocabulary.tokens
    np.testing.assert_array_equal(tokenise(*pack(texts), again)[0], ids)
    first = list(dict.fromkeys(t for text in texts for t in text.split()))
    assert vocabulary.tokens == first


def counted(texts: list[str], groups: list[int], number: int) -> dict[tuple[int, str], tuple[int, int]]:
    out: dict[tuple[int, str], tuple[int, int]] = {}
    for text, group in zip(texts, groups, strict=True):
        if group >= 0:
            for word, times in Counter(naive([text], "simple")[0]).items():
                a, b = out.get((group, word), (0, 0))
                out[group, word] = (a + times, b + 1)
    return out


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text(st.sampled_from("ab c"), max_size=12), st.integers(-1, 3)), max_size=14), st.integers(0, 14))
def test_counts_and_their_sum(rows: list[tuple[str, int]], cut: int) -> None:
    texts, groups = [r[0] for r in rows], [r[1] for r in rows]
    vocabularies, parts = [], []
    for a, b in ((0, cut), (cut, len(rows))):
        vocabulary = Vocabulary()
        ids, ends = tokenise(*pack(texts[a:b]), vocabulary)
        parts.append(count(ids, ends, np.array(groups[a:b], np.int64), 4, len(vocabulary)))
        vocabularies.append(vocabulary)
    common = Vocabulary()
    whole = merge_counts(parts, [common.add(*v.arrays()) for v in vocabularies])
    names = common.tokens
    got = {
        (g, names[w]): (int(c), int(d))
        for g in range(4)
        for w, c, d in zip(*(v[whole.ptr[g] : whole.ptr[g + 1]] for v in (whole.word, whole.count, whole.documents)), strict=True)
    }
    assert got == counted(texts, groups, 4)
    assert whole.size.tolist() == [groups.count(g) for g in range(4)]
    assert whole.total.sum() == sum(c for c, _ in got.values())


def test_bigrams() -> None:
    vocabulary = Vocabulary()
    ids, ends = tokenise(*pack(["a b a b", "b", "c a b"]), vocabulary)
    keep = np.array([True, True, False])
    pairs, starts = bigrams(ids, ends, keep)
    assert [(int(p >> 32), int(p & 0xFFFFFFFF)) for p in pairs] == [(0, 1), (1, 0), (0, 1), (0, 1)]
    assert starts.tolist() == [0, 3, 3, 4]
