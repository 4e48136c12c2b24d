"""``words``: which words a condition adds to or removes from generated texts, tested on documents, corrected over all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.core.runs.documents import Documents
from codi_engine.core.runs.work import StreamOptions
from codi_engine.plugins.analyses.counting import Corpus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.kernels.counts import Counts
    from codi_engine.kernels.multiple import Family


class WordsOptions(StreamOptions):
    """``pattern``: ``simple`` (words and numbers, `\\$?\\d+|\\b[a-zA-Z]+\\b`), ``extended`` (currencies, decimals, Hangul, %) or any
    regular expression. ``ngrams: 2`` counts neighbouring pairs too. ``pairs``: conditions to compare, ``[[a, b]]`` for a against b
    (default: each against ``baseline``, else all pairs). ``test``: ``auto`` tests shares of texts by Fisher's exact test or χ² where
    there is one example, by a paired t-test over examples where there are several; ``permutation`` exchanges the texts' conditions
    within examples; ``g2`` is Dunning's test of tokens, which takes tokens for independent. ``least``: texts (of a pair) that must
    have a word for it to be tested. ``prior``: pseudo-tokens of the log-odds' prior. ``top``: words listed per side.
    ``q``: level of the family of tests, after ``correction``. ``permutations`` and ``seed``: of the permutation test. ``draw``: how many are drawn.
    """

    pattern: str = "simple"
    ngrams: Literal[1, 2] = 1
    pairs: list[list[str]] | None = None
    test: Literal["auto", "documents", "examples", "permutation", "g2"] = "auto"
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni", "none"] = "bh"
    least: int = Field(default=5, ge=1)
    prior: float = Field(default=500.0, gt=0.0)
    top: int = Field(default=10, ge=0)
    permutations: int = Field(default=9999, ge=99)
    seed: int = Field(default=0, ge=0)
    draw: int = Field(default=6, ge=0)


@dataclass
class Tests:
    """Tests of one target and pair: terms (ids), their statistics (name → values), p."""

    target: int
    pair: int
    term: np.ndarray
    columns: dict[str, np.ndarray]
    p: np.ndarray


class Words(Analysis[WordsOptions]):
    """Word comparisons of generated texts: one shared vocabulary, log-odds with a prior, tests on documents, FDR over all.

    The unit of inference is the example; where each condition has one prompt its texts are the only replication, and the
    summary says so.
    """

    name = "words"
    Options = WordsOptions

    def check(self, facts: Foreseen) -> None:
        if not facts.texts:
            raise UserError("needs generated texts; runs keep them with `generate:`, and `codi-engine import` takes them from logs")
        facts.need_pairs(self.options.pairs)
        try:
            re.compile(self.options.pattern)
        except re.error as error:
            raise UserError(f"pattern '{self.options.pattern}' is no regular expression ({error}); or write simple, extended") from None

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.kernels.multiple import Family

        run, options = runs[0], self.options
        documents = Documents(run, self.name, {name for pair in self.options.pairs or () for name in pair})
        pairs = documents.arrangement.pairs(options.pairs, self.name)
        documents.by_example = self._by_example(documents)
        self._check(documents)
        work.begin(
            {"analysis": self.name, "run": run.digest, "options": options.model_dump(include={"pattern", "ngrams", "test", "least"}), "piece": work.piece}
        )
        corpus = Corpus(documents, work, options.pattern)
        corpus.count_words()
        if options.ngrams == 2:
            corpus.count_pairs(options.least)
        corpus.settle()
        if corpus.tokens == 0:
            raise UserError(f"{self.name}: the texts of {run.path} hold no word of pattern '{options.pattern}'")
        family = Family(options.q, options.correction)
        kept, listed = self._tested(corpus, pairs, family)
        tables = self._tables(corpus, pairs, family, kept, listed)
        return AnalysisResult(tables, summary=self._summary(corpus, pairs, family, tables))

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import word_figures

        return word_figures.draw(tables["words"], tables["top"], self.options.draw)

    # --------------------------------------------------------------------------------------------- design

    def _by_example(self, documents: Documents) -> bool:
        several = len(documents.arrangement.examples) > 1
        if self.options.test == "examples" and not several:
            raise UserError(f"{self.name}: test examples needs several examples; the run has one: use test=documents")
        return several if self.options.test in ("auto", "permutation") else self.options.test == "examples"

    def _check(self, documents: Documents) -> None:
        try:
            re.compile(self.options.pattern)
        except re.error as error:
            raise UserError(f"{self.name}: pattern '{self.options.pattern}' is no regular expression ({error}); or write simple, extended") from None
        a = documents.arrangement
        if len(a.examples) * a.replicates < 2:
            raise UserError(f"{self.name}: needs at least two texts per condition; the run has one example and one trial")

    # ---------------------------------------------------------------------------------------------- tests

    def _tested(self, corpus: Corpus, pairs: Sequence[tuple[int, int]], family: Family) -> tuple[list[Tests], list[Tests]]:
        """Test everything; returns the tests that may be significant, and the strongest of each target and pair."""
        keep = corpus.documents >= self.options.least
        kept, listed = [], []
        for targets, counts in corpus.batches(keep):
            for tests in self._of_batch(corpus, pairs, targets, counts):
                likely = tests.p <= self.options.q
                family.add(tests.p[likely], more=int((~likely).sum()))
                kept.append(_take(tests, likely))
                listed.append(_take(tests, _strongest(tests.columns["z"], self.options.top)))
        cutoff = family.cutoff()
        return [_take(t, t.p <= cutoff) for t in kept], listed

    def _of_batch(self, corpus: Corpus, pairs: Sequence[tuple[int, int]], targets: list[int], counts: Counts) -> Iterator[Tests]:
        documents = corpus.documents_
        prior = corpus.total * (self.options.prior / corpus.total.sum())
        for target in targets:
            for number, (a, b) in enumerate(pairs):
                groups = [self._groups(documents, targets, target, c) for c in (a, b)]
                yield self._one(corpus, counts, groups, target, number, prior)

    def _groups(self, documents: Documents, targets: list[int], target: int, condition: int) -> np.ndarray:
        """Return the rows of a batch's counts that belong to a target and condition."""
        a, own = documents.arrangement, len(documents.arrangement.own) * documents.examples
        if condition in a.own:
            first = documents.group(target - targets[0], condition)
        else:
            first = len(targets) * own + a.shared.index(condition) * documents.examples
        return first + np.arange(documents.examples)

    def _one(self, corpus: Corpus, counts: Counts, groups: list[np.ndarray], target: int, pair: int, prior: np.ndarray) -> Tests:
        from codi_engine.kernels.keyness import g2, log_odds, log_ratio

        sides = [_side(counts, rows) for rows in groups]
        terms = np.union1d(sides[0].term, sides[1].term)
        (x, dx), (y, dy) = (_spread(side, terms) for side in sides)
        total = [int(counts.total[rows].sum()) for rows in groups]
        size = [int(counts.size[rows].sum()) for rows in groups]
        enough = (dx + dy >= self.options.least) & (min(size) > 0)  # a target without a text of one side says nothing of its words
        terms, x, y, dx, dy = (v[enough] for v in (terms, x, y, dx, dy))
        odds, z = log_odds(x, y, np.array(total[0]), np.array(total[1]), prior[terms], self.options.prior)
        columns = {
            "count": x, "count_against": y, "texts": dx, "texts_against": dy, "share": dx / max(size[0], 1), "share_against": dy / max(size[1], 1),
            "log_odds": odds, "z": z, "g2": g2(x, y, np.array(total[0]), np.array(total[1])),
            "log_ratio": log_ratio(x, y, np.array(total[0]), np.array(total[1]), len(corpus.names)),
        }  # fmt: skip
        p = self._p(counts, groups, terms, columns, size, target * 1000 + pair) if len(terms) and min(size) else np.full(len(terms), np.nan)
        return Tests(target, pair, terms, columns, p)

    def _p(
        self, counts: Counts, groups: list[np.ndarray], terms: np.ndarray, columns: dict[str, np.ndarray], size: list[int], stream: int
    ) -> np.ndarray:  # fmt: skip
        from codi_engine.kernels.keyness import chi2_p, documents_p
        from codi_engine.plugins.analyses import word_tests

        if self.options.test == "g2":
            return chi2_p(columns["g2"])
        if self.options.test == "permutation":
            return word_tests.permuted(counts, groups, terms, self.options.permutations, self.options.seed, stream)
        if len(groups[0]) > 1:
            return word_tests.paired_shares(counts, groups, terms)
        p, _ = documents_p(columns["texts"], columns["texts_against"], np.array(size[0]), np.array(size[1]))
        return p

    # --------------------------------------------------------------------------------------------- output

    def _tables(self, corpus: Corpus, pairs: Sequence[tuple[int, int]], family: Family, kept: list[Tests], listed: list[Tests]) -> dict[str, pd.DataFrame]:
        import pandas as pd

        names = np.array(corpus.names, object)
        significant = _frame(kept, corpus, pairs, names)
        significant["q"] = family.adjust(significant["p"].to_numpy())
        significant = significant[significant["q"] <= self.options.q].reset_index(drop=True)
        order = significant["z"].abs().sort_values(ascending=False, kind="stable").index
        significant = significant.loc[order].reset_index(drop=True)
        top = _frame(listed, corpus, pairs, names)
        keys = ["target", "condition", "against", "word"]
        top = top.merge(significant[[*keys, "q"]], on=keys, how="left")
        sums = pd.DataFrame({"word": names, "count": corpus.total, "texts": corpus.documents})
        overall = sums.sort_values(["texts", "word"], ascending=[False, True], kind="stable").reset_index(drop=True)
        return {"words": significant, "top": top, "vocabulary": overall[overall["texts"] >= self.options.least].reset_index(drop=True)}

    def _summary(self, corpus: Corpus, pairs: Sequence[tuple[int, int]], family: Family, tables: dict[str, pd.DataFrame]) -> str:
        a, options, found = corpus.documents_.arrangement, self.options, tables["words"]
        added, removed = int((found["change"] == "added").sum()), int((found["change"] == "removed").sum())
        rule = f"p < {options.q:g}, not corrected" if options.correction == "none" else f"q ≤ {options.q:g}, {options.correction.upper()} over the whole family"
        lines = [f"{len(found):,} of {family.tests:,} comparisons of words are significant ({rule}); {added:,} words added, {removed:,} removed"]
        lines.append(
            f"{corpus.texts:,} texts, {corpus.tokens:,} words of pattern {options.pattern}, {len(corpus.names):,} different; "
            f"{len(a.targets):,} {'target' if len(a.targets) == 1 else 'targets'} × {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}"
        )
        lines.append(self._unit(corpus.documents_))
        if a.shared:
            lines.append(f"{', '.join(a.conditions[c] for c in a.shared)}: one sample, shared by all targets; their tests are dependent")
        if options.test == "permutation" and family.tests and options.q / family.tests < 1 / (options.permutations + 1):
            lines.append(f"{options.permutations:,} permutations give no p below {1 / (options.permutations + 1):.2g}: single words may need more of them")
        for condition, against in dict.fromkeys(zip(found["condition"], found["against"], strict=True)):
            part = found[(found["condition"] == condition) & (found["against"] == against)]
            more, fewer = part[part["z"] > 0]["word"].unique()[:8], part[part["z"] < 0]["word"].unique()[:8]
            lines.append(f"  {condition} against {against}: more {', '.join(more) or '–'}; fewer {', '.join(fewer) or '–'}")
            if len(lines) > 12:
                lines.append("  …")
                break
        return "\n".join(lines)

    def _unit(self, documents: Documents) -> str:
        a = documents.arrangement
        if self.options.test == "g2":
            return "tokens are taken for independent, which words of one text are not: p-values are too small; use test=documents"
        trials = f", {a.replicates:,} texts each" if a.replicates > 1 else ""
        if documents.by_example:
            how = "texts exchange conditions within their example" if self.options.test == "permutation" else "shares of texts, paired by example"
            few = "; so few examples can hardly tell anything: test=documents speaks about sampling from these prompts" if len(a.examples) < 6 else ""
            return f"unit: the example ({len(a.examples):,}{trials}); {how}{few}"
        if len(a.examples) > 1:
            return "texts of one example are taken for independent: p-values are too small; use test=examples"
        return "one prompt per condition: its texts are the only replication, so this speaks about sampling from these prompts and nothing wider"


@dataclass
class _Side:
    """Counts of one condition, examples added up."""

    term: np.ndarray
    count: np.ndarray
    documents: np.ndarray


def _side(counts: Counts, rows: np.ndarray) -> _Side:
    begin, end = int(counts.ptr[rows[0]]), int(counts.ptr[rows[-1] + 1])
    term = counts.word[begin:end]
    if len(rows) == 1:
        return _Side(term, counts.count[begin:end].astype(np.int64), counts.documents[begin:end].astype(np.int64))
    unique, number = np.unique(term, return_inverse=True)
    sums = [np.bincount(number, v[begin:end], len(unique)).astype(np.int64) for v in (counts.count, counts.documents)]
    return _Side(unique, *sums)


def _spread(side: _Side, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (counts, documents) of ``terms``, 0 where the side has none."""
    place = np.searchsorted(terms, side.term)
    count, documents = np.zeros(len(terms), np.int64), np.zeros(len(terms), np.int64)
    count[place], documents[place] = side.count, side.documents
    return count, documents


def _take(tests: Tests, which: np.ndarray) -> Tests:
    return Tests(tests.target, tests.pair, tests.term[which], {k: v[which] for k, v in tests.columns.items()}, tests.p[which])


def _strongest(z: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the most positive and the most negative z."""
    order = np.argsort(-z, kind="stable")
    chosen: np.ndarray = np.unique(np.concatenate([order[:count][z[order[:count]] > 0], order[::-1][:count][z[order[::-1][:count]] < 0]]))
    return chosen


def _frame(found: Sequence[Tests], corpus: Corpus, pairs: Sequence[tuple[int, int]], names: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    a = corpus.documents_.arrangement
    sizes = [len(t.term) for t in found]
    target = np.repeat([t.target for t in found], sizes)
    pair = np.repeat([t.pair for t in found], sizes)
    terms = np.concatenate([t.term for t in found]) if found else np.zeros(0, np.int64)
    columns = {k: np.concatenate([t.columns[k] for t in found]) for k in found[0].columns}
    targets, conditions = np.array([a.name(t) for t in range(len(a.targets))], object), np.array(a.conditions, object)
    first, second = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    frame = pd.DataFrame(
        {"target": targets[target], "condition": conditions[first[pair]], "against": conditions[second[pair]], "word": names[terms], **columns}
    )
    change = np.where(frame["texts_against"] == 0, "added", np.where(frame["texts"] == 0, "removed", ""))
    frame["change"] = change
    frame["p"] = np.concatenate([t.p for t in found])
    return frame
