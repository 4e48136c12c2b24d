"""Differences of metric columns between conditions, target by target: what ``proportions`` and ``select_features`` rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.runs.arrange import Arrangement, arrange
from codi_engine.kernels import shares
from codi_engine.plugins.metrics.outcome import ANSWER_CLASSES, OutcomeOptions, read_outcomes

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

#: examples from which they are the unit by default: with fewer, no exact paired test reaches p = .05 (2^(1 − 5) = .0625)
ENOUGH = 6
Unit = Literal["example", "trial"]


@dataclass(frozen=True)
class Grids:
    """A run's cells as grids of targets × examples × replicates, and the columns to be compared.

    ``values``: column → value of every slot, NaN where there is none; ``numeric``: columns that are no shares of yes and no.
    """

    run: Run
    arrangement: Arrangement
    values: Mapping[str, np.ndarray]
    numeric: frozenset[str]
    kept: np.ndarray

    @cached_property
    def doubles(self) -> dict[str, str]:
        """Return columns that are the same as another one in every cell: that one's name. Members of classes are kept."""
        grids = [self.slots(c) for c in range(len(self.arrangement.conditions))]
        used = np.concatenate([g[g >= 0] for g in grids])
        out: dict[str, str] = {}
        for name, values in sorted(self.values.items(), key=lambda item: not _of_classes(item[0])):
            others = (k for k in self.values if k != name and k not in out and not _of_classes(name))
            same = next((k for k in others if np.array_equal(self.values[k][used], values[used], equal_nan=True)), None)
            if same is not None:
                out[name] = same
        return out

    @property
    def distinct(self) -> list[str]:
        """Return the columns that are tested."""
        return [name for name in self.values if name not in self.doubles]

    def slots(self, condition: int) -> np.ndarray:
        """Return a condition's slots, targets × examples × replicates (one target where all targets share it); −1: none."""
        a = self.arrangement
        grid = a.slots[:, a.own.index(condition)] if condition in a.own else a.common[None, a.shared.index(condition)]
        return np.where((grid >= 0) & self.kept[grid], grid, -1)

    def cells(self, condition: int, column: str) -> np.ndarray:
        """Return a column's values, targets × examples × replicates, NaN where there is no value."""
        slots = self.slots(condition)
        out: np.ndarray = np.where(slots >= 0, self.values[column][slots], np.nan)
        return out

    @cached_property
    def draws(self) -> int:
        """Return the most cells that an example has in one condition of one target."""
        return max(int((self.slots(c) >= 0).sum(-1).max()) for c in range(len(self.arrangement.conditions)))

    def examples(self) -> int:
        """Return how many examples have any cell."""
        return int(np.any([(self.slots(c) >= 0).any((0, 2)) for c in range(len(self.arrangement.conditions))], axis=0).sum())


@dataclass(frozen=True)
class Compared:
    """Tests of all targets for one pair of conditions and one column; arrays have one entry a target.

    ``value`` and ``against`` are the two means, with Wilson's intervals where they are shares; ``n``: examples, or draws.
    """

    test: str
    interval: str
    n: np.ndarray
    n_against: np.ndarray
    value: np.ndarray
    against: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    odds_ratio: np.ndarray
    size: np.ndarray
    p: np.ndarray
    tested: np.ndarray
    least: float = field(default=0.0)


def _of_classes(column: str) -> bool:
    return column in ANSWER_CLASSES or "=" in column


def columns_of(run: Run, wanted: Sequence[str] | None, where: str) -> list[str]:
    """Return the metric columns to compare: those wanted, or all that answer yes or no and the numbers of ``outcome``.

    A name may stand for its columns: ``answer_class``, or ``action`` for ``action=stop`` …
    """
    known = run.metrics
    if wanted is None:
        found = [m for m in known if _yes_or_no(run.store.column(f"cells/metrics/{m}"))]
        found += [m for m in known if m not in found and m in _outcome_numbers(run)]
        if not found:
            raise UserError(f"{where}: the run has no metric of yes and no; add metrics: [answer_class] or name others with `metrics`")
        return found
    out: list[str] = []
    for name in wanted:
        mine = [name] if name in known else list(ANSWER_CLASSES) if name == "answer_class" else [m for m in known if m.startswith(f"{name}=")]
        lacking = next((m for m in mine or [name] if m not in known), None)
        if lacking is not None:
            raise UserError(f"{where}: metrics: '{lacking}' is not in the run; {nearest(lacking, known)}")
        out += [m for m in mine if m not in out]
    return out


def _yes_or_no(values: np.ndarray) -> bool:
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(np.isin(known, (0.0, 1.0)).all())


def _outcome_numbers(run: Run) -> set[str]:
    """Return the columns that ``outcome`` reads as numbers, as the experiment says."""
    uses = [m for m in run.experiment.get("metrics") or [] if isinstance(m, dict) and str(m.get("plugin", "")).split("/")[-1] == "outcome"]
    return {str(name) for use in uses for name in use.get("numbers") or []}


def grids(run: Run, wanted: Sequence[str] | None, correct: bool, where: str, more: Mapping[str, np.ndarray] | None = None) -> Grids:
    """Arrange a run and read its columns.

    Parameters
    ----------
    wanted: columns; None for the default
    correct: only examples whose unedited answers are right, both sides' for pairs
    more: further columns, one value per cell of ``run.store.slots``
    """
    arrangement = arrange(run, where)
    names = columns_of(run, wanted, where) if wanted is not None or not more else []
    read = {name: run.store.column(f"cells/metrics/{name}") for name in names} | dict(more or {})
    numeric = frozenset(name for name, values in read.items() if not _yes_or_no(values))
    total = run.store.units * run.store.unit_cells
    values = {}
    for name, column in read.items():
        values[name] = np.full(total, np.nan)
        values[name][run.store.slots] = column
    kept = np.ones(total, bool)
    if correct:
        code = np.full(total, -1, np.int64)
        code[run.store.slots] = run.store.codes("example")
        kept = np.isin(code, correct_examples(run, where))
        if not kept.any():
            raise UserError(f"{where}: keep: no example's unedited answers are all right; use keep=all")
    return Grids(run, arrangement, values, numeric, kept)


def correct_examples(run: Run, where: str) -> np.ndarray:
    """Return the codes of examples all of whose unedited answers are right.

    Raises
    ------
    UserError: nothing says which are right
    """
    known = run.metrics
    base = run.store.codes("condition") == _code(run, "condition", "baseline")
    if "accuracy" in known:
        right = run.store.column("cells/metrics/accuracy") == 1
    elif set(ANSWER_CLASSES) <= set(known):
        clean, corrupted = (run.store.column(f"cells/metrics/{name}") == 1 for name in ANSWER_CLASSES[:2])
        right = np.where(run.store.codes("variant") == _code(run, "variant", "corrupted"), corrupted, clean)
    else:
        raise UserError(f"{where}: which answers are right is not known; add metrics: [accuracy] or [answer_class]")
    examples = run.store.codes("example")
    return np.setdiff1d(examples[base & right], examples[base & ~right])


def _code(run: Run, axis: str, label: str) -> int:
    labels = run.store.labels(axis) if axis in run.axes else []
    return labels.index(label) if label in labels else -2


def unit_of(found: Grids, wanted: Literal["auto", "example", "trial"]) -> Unit:
    """Return what counts as one observation: examples where there are enough of them, else the draws of each prompt."""
    if wanted != "auto":
        return wanted
    return "example" if found.examples() >= ENOUGH else "trial"


def check_unit(found: Grids, unit: str, where: str) -> None:
    """Raise UserError where there is one observation per condition."""
    examples, draws = found.examples(), found.draws
    if unit == "example" and examples < 2:
        raise UserError(f"{where}: unit=example needs at least two examples; the run has {examples}. Use unit=trial")
    if examples * draws < 2:
        raise UserError(f"{where}: needs at least two examples or trials per condition; the run has one of each")


def compare(found: Grids, pair: tuple[int, int], column: str, unit: Unit, confidence: float) -> Compared:
    """Compare two conditions in one column at every target; only examples that both have are compared where they are the unit."""
    a, b = (found.cells(c, column) for c in pair)
    targets = len(found.arrangement.targets)
    a, b = (np.broadcast_to(v, (targets, *v.shape[1:])) for v in (a, b))
    number = column in found.numeric
    if unit == "example":
        return _by_example(a, b, number, confidence)
    return _numbers_by_draw(a, b, confidence) if number else _shares_by_draw(a, b, confidence)


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return means without NaN; NaN where there is nothing."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = np.where(there, values, 0.0).sum(axis) / there.sum(axis)
    return out


def _cohens_h(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out: np.ndarray = 2 * np.arcsin(np.sqrt(np.clip(a, 0, 1))) - 2 * np.arcsin(np.sqrt(np.clip(b, 0, 1)))
    return out


# ------------------------------------------------------------------------------------ examples as the unit


def _by_example(a: np.ndarray, b: np.ndarray, number: bool, confidence: float) -> Compared:
    """Paired tests over examples, their trials averaged: McNemar's exact test of single answers, else Student's paired t."""
    from codi_engine.kernels.moments import Moments, add_differences
    from codi_engine.kernels.ttest import CONSTANT, hedges_g, paired

    single = not number and ((~np.isnan(a)).sum(-1) <= 1).all() and ((~np.isnan(b)).sum(-1) <= 1).all()
    first, second = mean(a, -1), mean(b, -1)
    gone = np.isnan(first) | np.isnan(second)
    first, second = np.where(gone, np.nan, first), np.where(gone, np.nan, second)
    n = (~gone).sum(-1)
    value, against = mean(first, -1), mean(second, -1)
    moments = Moments.empty(1, len(n))
    add_differences(np.ascontiguousarray(np.stack([first.T, second.T])), np.array([[0, 1]]), moments)
    tested = paired(moments)
    with np.errstate(invalid="ignore", divide="ignore"):
        sd = np.sqrt(moments.spread[0] / (n - 1.0))
    rounding = np.abs(first - second).max(-1, initial=0.0, where=~gone) <= 1e-12
    p, spread = tested.p[0], (tested.status[0] != CONSTANT) & ~rounding & (n >= 2)
    low, high, interval = *_t_interval(value - against, sd / np.sqrt(np.maximum(n, 1)), n - 1.0, confidence), "t"
    size = hedges_g(value - against, sd, n, n, "paired", confidence)[0]
    odds = np.full(len(n), np.nan)
    if not number:
        size, odds = _cohens_h(value, against), _odds_ratio(value, against, n)
        wide = shares.newcombe(value, n, against, n, _phi(first, second), confidence)
        flat = single | ~(sd > 0)
        low, high = np.where(flat, wide[0], np.maximum(low, -1)), np.where(flat, wide[1], np.minimum(high, 1))
        interval = "newcombe" if single else "t"
    if single:
        p = shares.mcnemar(((first == 1) & (second == 0)).sum(-1), ((first == 0) & (second == 1)).sum(-1))
    p = np.where(n < 2, np.nan, np.where(spread, p, 1.0))
    return Compared(
        "McNemar" if single else "paired t", interval, n, n, value, against, value - against, low, high, odds, size, p, spread,
        2.0 ** (1 - int(np.median(n))) if single else 0.0,
    )  # fmt: skip


def _phi(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlation of shares over examples as Newcombe takes it."""
    x, y = np.nan_to_num(first), np.nan_to_num(second)
    there = ~np.isnan(first)
    both = (x * y).sum(-1)
    return shares.paired_phi(both, x.sum(-1) - both, y.sum(-1) - both, there.sum(-1) - x.sum(-1) - y.sum(-1) + both)


def _odds_ratio(a: np.ndarray, b: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the ratio of the marginal odds; half a count is added to every cell where one is empty."""
    cells = [v * n for v in (a, 1 - a, b, 1 - b)]
    add = 0.5 * (np.minimum.reduce(cells) <= 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = (cells[0] + add) * (cells[3] + add) / ((cells[1] + add) * (cells[2] + add))
    return np.where(n > 0, out, np.nan)


def _t_interval(difference: np.ndarray, se: np.ndarray, df: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy import special

    with np.errstate(invalid="ignore", divide="ignore"):
        half = special.stdtrit(np.where(df >= 1e-9, df, np.nan), 0.5 + confidence / 2) * se
    return difference - half, difference + half


# --------------------------------------------------------------------------------- draws of each prompt as the unit


def _shares_by_draw(a: np.ndarray, b: np.ndarray, confidence: float) -> Compared:
    """Exact conditional tests within prompts (one prompt: Fisher's); shares are weighted over prompts as Mantel and Haenszel do."""
    x, n, y, m = np.nansum(a, -1), (~np.isnan(a)).sum(-1), np.nansum(b, -1), (~np.isnan(b)).sum(-1)
    weight = _weights(n, m)
    value, against, n_a, n_b = _weighted(x, n, weight), _weighted(y, m, weight), _effective(n, weight), _effective(m, weight)
    low, high = shares.newcombe(value, n_a, against, n_b, 0.0, confidence)
    p, exact = shares.stratified(x.astype(int), n, y.astype(int), m)
    both = (n > 0) & (m > 0)
    ones, total = np.where(both, x + y, 0), np.where(both, n + m, 0)
    tested: np.ndarray = np.any((ones > 0) & (ones < total), axis=-1)
    odds = shares.common_odds_ratio(x, n, y, m)
    p = np.where(both.any(-1), p, np.nan)
    names = ("Fisher", "χ²") if a.shape[1] == 1 else ("exact Cochran–Mantel–Haenszel", "Cochran–Mantel–Haenszel")
    test = " or ".join(name for name, some in zip(names, (exact.any(), not exact.all()), strict=True) if some)
    size = _cohens_h(value, against)
    least = _least_p(n, m)
    return Compared(test, "newcombe", n.sum(-1), m.sum(-1), value, against, value - against, low, high, odds, size, p, tested, least)


def _least_p(n: np.ndarray, m: np.ndarray) -> float:
    """Return the smallest p that a typical test can have: all ones on one side."""
    place = int(np.argsort(n.sum(-1), kind="stable")[len(n) // 2])
    return float(shares.stratified(n[place : place + 1], n[place : place + 1], np.zeros_like(m[place : place + 1]), m[place : place + 1])[0][0])


def _weights(n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Return Mantel and Haenszel's weights of prompts, n m / (n + m), that sum to one; NaN where no prompt has both."""
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where((n > 0) & (m > 0), n * m / (n + m), 0.0)
        out: np.ndarray = weight / weight.sum(-1, keepdims=True)
    return out


def _weighted(ones: np.ndarray, n: np.ndarray, weight: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = np.clip(np.where(weight > 0, weight * ones / n, 0.0).sum(-1), 0.0, 1.0)
    return np.where(np.isnan(weight).any(-1), np.nan, out)


def _effective(n: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the draws of one prompt that would know a weighted share as well; the truth lies no further off (Jensen)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = 1.0 / np.where(weight > 0, weight**2 / n, 0.0).sum(-1)
    return np.where(np.isnan(weight).any(-1), 0.0, out)


def _numbers_by_draw(a: np.ndarray, b: np.ndarray, confidence: float) -> Compared:
    """Rank tests within prompts (one prompt: Mann and Whitney's); means weighted over prompts, with Welch's interval."""
    n, m = (~np.isnan(a)).sum(-1), (~np.isnan(b)).sum(-1)
    weight = _weights(n, m)
    parts = [(mean(v, -1), _variance(v)) for v in (a, b)]
    value, against = (np.where(np.isnan(weight).any(-1), np.nan, np.where(weight > 0, weight * part[0], 0.0).sum(-1)) for part in parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = [np.where(weight > 0, weight**2 * part[1] / k, 0.0) for part, k in zip(parts, (n, m), strict=True)]
        squares = sum(np.where(weight > 0, t**2 / (k - 1.0), 0.0).sum(-1) for t, k in zip(terms, (n, m), strict=True))
        variance = terms[0].sum(-1) + terms[1].sum(-1)
        df = variance**2 / squares
        inside = [np.where(weight > 0, (k - 1) * part[1], 0.0).sum(-1) for part, k in zip(parts, (n, m), strict=True)]
        sd = np.sqrt((inside[0] + inside[1]) / (np.where(weight > 0, n + m - 2, 0)).sum(-1))
        size = (value - against) / sd
    low, high = _t_interval(value - against, np.sqrt(variance), df, confidence)
    p = np.array([shares.van_elteren(u, v)[1] for u, v in zip(a, b, strict=True)])
    values = np.concatenate([a, b], -1)
    spread = (np.nanmax(np.where(weight[..., None] > 0, values, -np.inf), -1) > np.nanmin(np.where(weight[..., None] > 0, values, np.inf), -1)).any(-1)
    size = np.where(np.isfinite(size), size, np.nan)
    test = "Mann–Whitney" if a.shape[1] == 1 else "van Elteren"
    return Compared(test, "welch", n.sum(-1), m.sum(-1), value, against, value - against, low, high, np.full(len(p), np.nan), size, p, spread & ~np.isnan(p))


def _variance(values: np.ndarray) -> np.ndarray:
    there = ~np.isnan(values)
    centre = values - mean(values, -1)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = np.where(there, centre**2, 0.0).sum(-1) / (there.sum(-1) - 1.0)
    return out


def stored_outcomes(run: Run, options: OutcomeOptions, where: str) -> dict[str, np.ndarray]:
    """Read a pattern in the stored texts: column → value of each cell of ``run.store.slots``, NaN where there is no text."""
    table = run.store.texts()
    if "text" not in table.column_names or table.column("text").null_count == table.num_rows:
        raise UserError(f"{where}: outcome: {run.path} holds no texts")
    texts, slots = table.column("text").to_pylist(), table.column("slot").to_numpy()
    there = np.isin(slots, run.store.slots) & np.array([t is not None for t in texts])
    place = np.searchsorted(run.store.slots, slots[there])
    out = {}
    for name, values in read_outcomes([t for t, keep in zip(texts, there, strict=True) if keep], options).items():
        out[name] = np.full(len(run.store.slots), np.nan)
        out[name][place] = values
    return out
