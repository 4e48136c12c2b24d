"""Feature cards: of each edited feature, what it changes downstream, what changes it, its words, outcomes and example texts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.controls import is_control
from codi_engine.core.runs.arrange import layer_of
from codi_engine.reporting.section import Section, environment
from codi_engine.reporting.text import visible

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment
    from markupsafe import Markup

    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.stored import StoredResult
    from codi_engine.reporting.card_texts import Pair

#: cards of one report, the strongest features first
MOST = 40
#: rows of each list on a card
_LINKS, _WORDS, _SHARES = 12, 8, 12
#: words that are shown although they are not significant, so that it is seen what came nearest
_NEAREST = 3
#: axes that may name features, in the order tried, and the analyses whose results make a card
_AXES = ("feature", "target")
_FROM = ("pathways", "words", "proportions", "select_features")
_NUMBER = re.compile(r"(?<!\d)(\d{1,9})\Z")


@dataclass(frozen=True)
class Link:
    """One significant pathway: the other feature, the compared conditions, difference of means, Hedges' g with interval, q and n."""

    feature: str
    condition: str
    against: str
    effect: float
    g: float
    low: float
    high: float
    q: float
    n: int
    card: bool


@dataclass(frozen=True)
class Word:
    """A word that a condition makes more or less frequent: share of texts with it, there and in the other condition."""

    word: str
    share: float
    share_against: float
    z: float
    q: float | None
    only: bool


@dataclass(frozen=True)
class Share:
    """An outcome of a condition: its mean with interval, the other condition's, their difference with interval, q and size."""

    metric: str
    condition: str
    against: str
    n: int
    mean: float
    ends: tuple[float, float] | None
    mean_against: float
    difference: float
    low: float
    high: float
    q: float | None
    significant: bool
    size: float


@dataclass
class Card:
    """What is known of one feature."""

    feature: str
    layer: int | None
    index: int | None
    about: dict[str, str] = field(default_factory=dict)
    selected: str = ""
    down: list[Link] = field(default_factory=list)
    up: list[Link] = field(default_factory=list)
    words: list[tuple[str, str, list[Word], list[Word]]] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    more: dict[str, int] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        return anchor(self.feature)

    @property
    def sure_words(self) -> int:
        """Words that survive the correction, of those listed."""
        return sum(w.q is not None for *_, more, fewer in self.words for w in (*more, *fewer))

    @property
    def strength(self) -> tuple[float, float, int, int, str]:
        """Sort key: the largest |g| or |h| among what is significant, then the largest |z| of a word, then layer, number and name."""
        sizes = [abs(link.g) for link in self.down] + [abs(s.size) for s in self.shares if s.significant and s.size == s.size]
        words = [abs(w.z) for *_, more, fewer in self.words for w in (*more, *fewer) if w.q is not None]
        return (
            -max(sizes, default=0.0),
            -max(words, default=0.0),
            -1 if self.layer is None else self.layer,
            -1 if self.index is None else self.index,
            self.feature,
        )


def anchor(feature: str) -> str:
    """Return the id of a feature's card."""
    return "feature-" + re.sub(r"[^A-Za-z0-9_-]", "_", feature)


def section(run: Run) -> Section | None:
    """Return the cards of a run whose axis names features; None where it has no such axis or nothing was analysed."""
    cards, said = collect(run)
    if not cards:
        return None
    summaries = {name: r.summary for name, r in run.results.items() if name in _FROM and r.about}
    return Section("features", "Features", _render(cards, said, summaries))


def _render(cards: list[Card], said: list[str], summaries: dict[str, str]) -> Markup:
    from markupsafe import Markup

    return Markup(templates().get_template("cards.html").render(cards=cards, said=said, summaries=summaries))


def templates() -> Environment:
    """Return the report's templates with the filters that cards and films need."""
    made = environment()
    made.filters.update(cut=visible, anchor=anchor, signed=_signed, small=_small, percent=_percent, figure=_number)
    return made


def _signed(value: float) -> str:
    return "–" if value != value else f"{value:+.3g}".replace("-", "−")


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.4g}".replace("-", "−")


def _percent(value: float) -> str:
    return "–" if value != value else f"{value:.0%}"


def _small(value: float | None) -> str:
    """Say a p or q; none: it was not tested."""
    return "–" if value is None or value != value else "< 1e-99" if value < 1e-99 else f"{value:.2g}"


def collect(run: Run, most: int = MOST) -> tuple[list[Card], list[str]]:
    """Return the cards of the strongest features, and what is to be said of all of them."""
    from codi_engine.reporting.card_texts import add_pairs, describe

    axis = next((a for a in _AXES if a in run.axes), None)
    results = {name: r for name, r in run.results.items() if name in _FROM and r.about}
    if axis is None or not results:
        return [], []
    labels = [str(v) for v in run.store.labels(axis)]
    cards = {label: Card(label, layer_of(label), _index(label)) for label in labels}
    names = _Names(axis, labels)
    _add_pathways(cards, results.get("pathways"), names)
    _add_words(cards, results.get("words"), names)
    _add_shares(cards, results, names)
    _add_selected(cards, results.get("select_features"))
    found = sorted(cards.values(), key=lambda c: c.strength)[:most]
    said = [_order(len(found), len(cards)), *_stale(results, run), *_missing(results)]
    said += describe(run, found)
    add_pairs(run, axis, found)
    return found, said


def _order(shown: int, all_of_them: int) -> str:
    what = f"The {shown:,} strongest of {all_of_them:,} edited features" if shown < all_of_them else f"{shown:,} edited features"
    return f"{what}, by their largest significant effect; those without any come last."


def _stale(results: dict[str, StoredResult], run: Run) -> list[str]:
    old = [name for name, r in results.items() if not r.is_of(run.digest)]
    return [f"{', '.join(old)}: made before the run grew; codi-engine analyze {run.path} {' '.join(old)} brings the cards up to date."] if old else []


def _missing(results: dict[str, StoredResult]) -> list[str]:
    absent = [n for n in ("pathways", "words", "proportions") if n not in results and not (n == "proportions" and "select_features" in results)]
    return [f"Not analysed, so not on the cards: {', '.join(absent)}."] if absent else []


class _Names:
    """Which feature a target of an analysis is: its label, or the last word of ``layer 0 feature L0-29``."""

    def __init__(self, axis: str, labels: list[str]) -> None:
        self._known, self._word = set(labels), re.compile(rf"\b{axis} (.+)\Z")

    def __call__(self, target: object) -> str | None:
        text = str(target)
        if text in self._known:
            return text
        match = self._word.search(text)
        return match[1] if match and match[1] in self._known else None


def _index(label: str) -> int | None:
    match = _NUMBER.search(label)
    return int(match[1]) if match else None


def _table(result: StoredResult | None, *names: str) -> pd.DataFrame | None:
    """Return the first of these tables that was left and has rows."""
    found = (result.table(name) for name in names if result is not None and name in result.tables)
    return next((t for t in found if len(t)), None)


# ------------------------------------------------------------------------------------------------- pathways


def _add_pathways(cards: dict[str, Card], result: StoredResult | None, names: _Names) -> None:
    table = _table(result, "pathways")
    if table is None:
        return
    order = table.assign(size_=-table["hedges_g"].abs()).sort_values(["size_", "q"], kind="stable")
    for row in order.itertuples(index=False):
        target, other = names(row.target), str(row.feature)
        if target is not None:
            _put(cards[target].down, _link(row, other, other in cards), cards[target].more, "down")
        if other in cards and target is not None:
            _put(cards[other].up, _link(row, target, True), cards[other].more, "up")


def _put(links: list[Link], link: Link, more: dict[str, int], key: str) -> None:
    if len(links) < _LINKS:
        links.append(link)
    else:
        more[key] = more.get(key, 0) + 1


def _link(row: Any, other: str, card: bool) -> Link:
    effect, g, low, high = (float(v) for v in (row.effect, row.hedges_g, row.g_low, row.g_high))
    return Link(other, str(row.condition), str(row.against), effect, g, low, high, float(row.q), int(row.n), card)


# ---------------------------------------------------------------------------------------------------- words


def _add_words(cards: dict[str, Card], result: StoredResult | None, names: _Names) -> None:
    """Add the strongest words of each pair of conditions; those that survive the correction have a q."""
    table = _table(result, "top", "words")
    if table is None:
        return
    for (target, condition, against), part in table.groupby(["target", "condition", "against"], sort=False):
        feature = names(target)
        if feature is None or is_control(condition):
            continue
        order = part.assign(late_=part["q"].isna(), size_=-part["z"].abs()).sort_values(["late_", "size_"], kind="stable")
        more, fewer = (_words(side) for side in (order[order["z"] > 0], order[order["z"] < 0]))
        cards[feature].words.append((str(condition), str(against), more, fewer))


def _words(side: pd.DataFrame) -> list[Word]:
    sure = int(side["q"].notna().sum())
    return [_word(r) for r in side.head(min(max(sure, _NEAREST), _WORDS)).itertuples(index=False)]


def _word(row: Any) -> Word:
    q = None if row.q is None or row.q != row.q else float(row.q)
    return Word(str(row.word), float(row.share), float(row.share_against), float(row.z), q, row.change in ("added", "removed"))


# --------------------------------------------------------------------------------------------------- shares


def _add_shares(cards: dict[str, Card], results: dict[str, StoredResult], names: _Names) -> None:
    """Add differences of outcomes, and the interval of each share; of select_features where proportions was not run."""
    tests = _table(results.get("proportions"), "proportions")
    if tests is None:
        tests = _table(results.get("select_features"), "tests")
    if tests is None:
        return
    ends = _ends(_table(results.get("proportions"), "shares"))
    for target, part in tests.groupby("target", sort=False):
        feature = names(target)
        if feature is None:
            continue
        known = part[part["n"] > 0].sort_values(["q", "p"], kind="stable", na_position="last")
        rows = [_share(r, ends.get((str(r.target), str(r.condition), str(r.metric)))) for r in known.itertuples(index=False) if not is_control(r.condition)]
        cards[feature].shares += rows[:_SHARES]
        if len(rows) > _SHARES:
            cards[feature].more["shares"] = len(rows) - _SHARES


def _ends(shares: pd.DataFrame | None) -> dict[tuple[str, str, str], tuple[float, float]]:
    if shares is None:
        return {}
    known = shares[shares["ci_low"].notna()]
    keys = zip(known["target"], known["condition"], known["metric"], strict=True)
    return dict(zip(keys, zip(known["ci_low"].astype(float), known["ci_high"].astype(float), strict=True), strict=True))


def _share(row: Any, ends: tuple[float, float] | None) -> Share:
    q = None if row.q is None or row.q != row.q else float(row.q)
    against, difference, low, high = (float(v) for v in (row.mean_against, row.difference, row.ci_low, row.ci_high))
    who = (str(row.metric), str(row.condition), str(row.against), int(row.n))
    return Share(*who, float(row.mean), ends, against, difference, low, high, q, bool(row.significant), float(row.effect_size))


def _add_selected(cards: dict[str, Card], result: StoredResult | None) -> None:
    table = _table(result, "features")
    if table is None:
        return
    for row in table.to_dict("records"):
        if str(row["feature"]) in cards:
            cards[str(row["feature"])].selected = f"{row['metric']} {float(row['effect']):+.2f} ({row['condition']}), q = {float(row['q']):.2g}"
