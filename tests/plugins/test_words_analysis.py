"""`words` on synthetic runs: planted words are found, counts are those of a Counter, memory and threads do not matter."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from codi_engine import analyze, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.runs.analyzing import Analysed
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.runs.work import Work
from codi_engine.plugins.analyses.counting import Corpus
from codi_engine.store.errors import StoreError

SMALL = {"targets": 4, "features": 12, "conditions": 3, "trials": 12, "words": 60}


def synthetic(path: Path, **keys: Any) -> Path:
    return write_synthetic(Synthetic(**{**SMALL, **keys}), path)


def one(run: Path, **options: Any) -> Analysed:
    return analyze(run, "words", **options)[0]


def table(done: Analysed, name: str = "words") -> pd.DataFrame:
    assert done.result is not None
    return done.result.tables[name]


def naive(run: Path) -> dict[tuple[str, str], tuple[Counter[str], Counter[str], int, list[list[set[str]]]]]:
    """(target, condition) → token counts, document counts, documents, per example its documents' words."""
    out: dict[Any, Any] = {}
    for (target, condition), part in open_run(run).cells.groupby(["target", "condition"], sort=False):
        found = [re.findall(r"\$?\d+|\b[a-zA-Z]+\b", t.lower()) for t in part["text"]]
        tokens, documents = Counter(w for f in found for w in f), Counter(w for f in found for w in set(f))
        examples = [[set(f) for f, e in zip(found, part["example"], strict=True) if e == name] for name in part["example"].unique()]
        out[target, condition] = (tokens, documents, len(found), examples)
    return out


def test_counts_and_fisher(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run")
    found = table(one(run, correction="none", least=4))
    want = naive(run)
    assert len(found) > 10
    for _, row in found.iterrows():
        a, b = want[row["target"], row["condition"]], want[row["target"], row["against"]]
        word = row["word"]
        assert (row["count"], row["count_against"], row["texts"], row["texts_against"]) == (a[0][word], b[0][word], a[1][word], b[1][word])
        assert row["p"] <= 0.05
        assert row["change"] == ("added" if b[1][word] == 0 else "removed" if a[1][word] == 0 else "")
        expected = min(a[2], b[2]) * min(row["texts"] + row["texts_against"], a[2] + b[2] - row["texts"] - row["texts_against"]) / (a[2] + b[2])
        if expected < 5:
            assert row["p"] == pytest.approx(stats.fisher_exact([[a[1][word], b[1][word]], [a[2] - a[1][word], b[2] - b[1][word]]]).pvalue, rel=1e-9)


def test_examples_are_the_unit(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run", examples=9, trials=4)
    done = one(run, correction="none", least=4)
    assert "unit: the example (9, 4 texts each)" in done.summary
    want = naive(run)
    checked = 0
    for _, row in table(done).iterrows():
        a, b = (want[row["target"], row[k]][3] for k in ("condition", "against"))
        shares = [[sum(row["word"] in t for t in e) / len(e) for e in side] for side in (a, b)]
        d = [x - y for x, y in zip(*shares, strict=True)]
        if len(set(d)) > 1:
            assert row["p"] == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-8)
            checked += 1
    assert checked > 5


OTHERS: tuple[dict[str, Any], ...] = ({"pattern": "extended"}, {"test": "g2"}, {})


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"ngrams": 2, "least": 3}, *OTHERS])
def test_memory_threads_and_batches_do_not_matter(tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Synthetic, "unit_cells", 17)
    run = synthetic(tmp_path / "run")
    whole = one(run, **options)
    monkeypatch.setattr(Work, "piece", property(lambda self: 1))
    original = Corpus.__post_init__

    def small(self: Corpus) -> None:
        original(self)
        self.parts = self.documents_.parts(5000)
        self.work.memory = 100

    monkeypatch.setattr(Corpus, "__post_init__", small)
    for threads in (1, 3):
        again = one(run, threads=threads, **options)
        for name in ("words", "top", "vocabulary"):
            pd.testing.assert_frame_equal(table(again, name), table(whole, name), check_exact=True)


def test_planted_words_are_found(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run", trials=30)
    found = table(one(run))
    truth = pd.read_parquet(run / "results" / "synth" / "words.parquet")
    hit = found.merge(truth, on=["target", "word", "condition"])
    assert len(hit) > 0.9 * len(truth)
    assert len(found) - len(hit) <= 0.15 * len(found)


def test_few_examples_are_said_to_tell_little(tmp_path: Path) -> None:
    assert "can hardly tell anything" in one(synthetic(tmp_path / "few", examples=2)).summary
    assert "can hardly tell anything" not in one(synthetic(tmp_path / "enough", examples=6, trials=3)).summary


def test_pairs_of_words(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run")
    overall = table(one(run, ngrams=2, least=3), "vocabulary").set_index("word")["count"]
    texts = [re.findall(r"\$?\d+|\b[a-zA-Z]+\b", t.lower()) for t in open_run(run).cells["text"]]
    documents = Counter(w for t in texts for w in set(t))
    pairs = Counter(f"{a} {b}" for t in texts for a, b in itertools.pairwise(t) if documents[a] >= 3 and documents[b] >= 3)
    listed = overall[[" " in w for w in overall.index]]
    assert len(listed) > 20
    assert all(pairs[str(w)] == n for w, n in listed.items())


def test_permutation(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run", targets=1)
    exact, drawn = (table(one(run, correction="none", q=0.2, test=t, permutations=4999)) for t in ("documents", "permutation"))
    both = exact.merge(drawn, on=["target", "condition", "word"])
    small = both[(both["texts_x"] + both["texts_against_x"]) < 10]
    assert len(small) > 5
    assert (small["p_x"] - small["p_y"]).abs().max() < 0.03  # Fisher's test is the limit of this permutation


def test_one_target_and_hostile_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Synthetic.texts

    def hostile(self: Synthetic, begin: int, end: int) -> list[str]:
        return [t + " $x^2$ \x1b[31m <b> [/bold] éa 가나 \x00" for t in original(self, begin, end)]

    monkeypatch.setattr(Synthetic, "texts", hostile)
    done = one(synthetic(tmp_path / "run", targets=1, trials=30))
    assert done.figures["target_1"].exists()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs generated texts"):
        one(synthetic(tmp_path / "none", words=0))
    run = synthetic(tmp_path / "run")
    with pytest.raises(UserError, match="condition 'risky'"):
        one(run, pairs=[["risky", "baseline"]])
    with pytest.raises(UserError, match="hold no word of pattern"):
        one(run, pattern="zzzzqqqq")
    with pytest.raises(UserError, match="pattern"):
        one(run, pattern="([")
    with pytest.raises(UserError, match="needs several examples"):
        one(run, test="examples")
    file = next((run / "texts").glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=file.name):
        one(run)
