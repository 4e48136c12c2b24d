"""Tables of ``logit_lens``: per place means, medians and shares over examples, each with its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses.effects import are_shares, statistics

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.logit_lens import LogitLensOptions
    from codi_engine.plugins.analyses.sought import Sought
    from codi_engine.plugins.analyses.states import States


@dataclass
class Lensed:
    """What the lens read: cells × pairs (layer by layer) × …; NaN (−1) where there is nothing."""

    rank: np.ndarray
    chance: np.ndarray
    prob: np.ndarray
    entropy: np.ndarray
    top: np.ndarray


class Groups:
    """Cells of one condition, to be averaged within their example: the unit of inference."""

    def __init__(self, frame: pd.DataFrame, condition: str) -> None:
        self.cells = np.flatnonzero((frame["condition"] == condition).to_numpy())
        codes, self.examples = pd.factorize(frame["example"].iloc[self.cells])
        self.codes, self.count = codes, len(self.examples)
        self.sizes = np.bincount(codes, minlength=self.count)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """All cells × anything → examples × anything, NaN left out; NaN where an example has nothing."""
        mine = np.asarray(values[self.cells], np.float64)
        known = ~np.isnan(mine)
        total, count = (np.zeros((self.count, *mine.shape[1:])) for _ in range(2))
        np.add.at(total, self.codes, np.where(known, mine, 0.0))
        np.add.at(count, self.codes, known)
        average: np.ndarray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        return average


@lru_cache(maxsize=4096)
def _order(n: int, confidence: float) -> int:
    """Return how many values may be cut off at either end so that the rest covers the median; −1 when none may."""
    from scipy import stats

    return int(stats.binom.ppf((1.0 - confidence) / 2.0, n, 0.5)) - 1


def median(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Return the median and its distribution-free interval from order statistics (sign test); NaN are left out.

    The interval is NaN where so few values cannot give one (fewer than 6 for 95 %).
    """
    known = np.sort(values[~np.isnan(values)])
    n = len(known)
    if not n:
        return np.nan, np.nan, np.nan
    cut = _order(n, confidence)
    low, high = (float(known[cut]), float(known[n - 1 - cut])) if cut >= 0 else (np.nan, np.nan)
    return float(np.median(known)), low, high


def _mean(name: str, values: np.ndarray, confidence: float, shares: bool) -> dict[str, float]:
    found = statistics(values, confidence, shares)
    return {name: found["mean"], f"{name}_low": found["ci_low"], f"{name}_high": found["ci_high"]}


def places(states: States) -> list[dict[str, Any]]:
    """Return the columns that name each pair: its layer, and its step or position."""
    return [{"layer": layer, states.axis: place} for layer in states.layers for place in states.places]


def _typed(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    return table.astype({"layer": "Int64", axis: "Int64"}) if len(table) else table


def lens_table(states: States, read: Lensed, sought: Sought, options: LogitLensOptions) -> pd.DataFrame:
    """Return one row per condition and place: rank of the answer, its probability, entropy, agreement with the answer given."""
    agrees = (read.top[:, :, :1] == np.where(sought.given < 0, -2, sought.given)[:, None]).any(2).astype(float)
    agrees[(sought.given < 0).all(1)] = np.nan
    agrees[read.top[:, :, 0] < 0] = np.nan
    gold = read.rank[:, :, -1]
    first = np.where(np.isnan(gold), np.nan, gold <= 1)
    rows = []
    for condition in dict.fromkeys(states.frame["condition"]):
        groups = Groups(states.frame, condition)
        values = {n: groups.mean(v) for n, v in (("rank", gold), ("first", first), ("prob", read.prob), ("entropy", read.entropy), ("agreement", agrees))}
        shares = {n: are_shares(pd.Series(values[n].ravel())) for n in ("first", "agreement")}
        for pair, place in enumerate(places(states)):
            at = {n: v[:, pair] for n, v in values.items()}
            middle = median(at["rank"], options.confidence)
            row = {"condition": condition, **place, "n": int((~np.isnan(at["entropy"])).sum()), "n_answer": int((~np.isnan(at["rank"])).sum())}
            row |= dict(zip(("rank", "rank_low", "rank_high"), middle, strict=True)) | {"rank_mean": _known_mean(at["rank"])}
            for name in ("first", "prob", "entropy", "agreement"):
                row |= _mean(name, at[name], options.confidence, shares.get(name, False))
            rows.append(row)
    return _typed(pd.DataFrame(rows), states.axis)


def _known_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def value_table(states: States, read: Lensed, sought: Sought, options: LogitLensOptions) -> pd.DataFrame:
    """Return one row per condition, value and place: rank, share of hits (rank ≤ top), share by chance, and their difference.

    The test is a one-sample t-test over examples of hit − chance, where chance is the share of hits among the numbers that
    other examples have at the same place of their solution; q over the whole table.
    """
    rows = []
    for condition in dict.fromkeys(states.frame["condition"]):
        groups = Groups(states.frame, condition)
        for v, name in enumerate(sought.names):
            rank = read.rank[:, :, v]
            hit = np.where(np.isnan(rank), np.nan, rank <= options.top)
            hits, above, ranks, chance = (groups.mean(x) for x in (hit, hit - read.chance[:, :, v], rank, read.chance[:, :, v]))
            shares = are_shares(pd.Series(hits.ravel()))
            for pair, place in enumerate(places(states)):
                found = statistics(above[:, pair], options.confidence, False)
                middle = median(ranks[:, pair], options.confidence)
                row = {"condition": condition, "value": name, **place, "n": int((~np.isnan(ranks[:, pair])).sum())}
                row |= dict(zip(("rank", "rank_low", "rank_high"), middle, strict=True))
                row |= _mean("hit", hits[:, pair], options.confidence, shares) | {"chance": _known_mean(chance[:, pair])}
                row |= {"above": found["mean"], "above_low": found["ci_low"], "above_high": found["ci_high"]}
                row |= {"hedges_g": found["hedges_g"], "p": found["p"], "note": found["note"]}
                rows.append(row)
    table = pd.DataFrame(rows)
    table["q"] = adjust(table["p"].to_numpy(float), options.correction)
    table["significant"] = (table["q"] < options.q) & (table["above"] > 0)
    return _typed(table, states.axis)


def token_table(states: States, read: Lensed, text: Callable[[int], str], top: int) -> pd.DataFrame:
    """Return the tokens that are most often among the first: share of examples, and share in which they are the first."""
    rows = []
    for condition in dict.fromkeys(states.frame["condition"]):
        groups = Groups(states.frame, condition)
        weight = 1.0 / groups.sizes[groups.codes]
        for pair, place in enumerate(places(states)):
            mine = read.top[groups.cells, pair]
            there = mine[:, 0] >= 0
            total = weight[there].sum()
            if not total:
                continue
            ids, index = np.unique(mine[there], return_inverse=True)
            share = np.bincount(index.ravel(), np.repeat(weight[there], mine.shape[1])) / total
            first = np.bincount(index.reshape(mine[there].shape)[:, 0], weight[there], minlength=len(ids)) / total
            for number, i in enumerate(np.lexsort((ids, -first, -share))[:top]):
                rows.append(
                    {"condition": condition, **place, "number": number + 1, "id": int(ids[i]), "token": text(int(ids[i])), "share": share[i], "first": first[i]}
                )
    return _typed(pd.DataFrame(rows), states.axis)


def example_table(states: States, read: Lensed, text: Callable[[int], str]) -> pd.DataFrame:
    """Return one row per cell and place: rank and probability of the answer, entropy, the first token."""
    shape = read.entropy.shape
    keys = ["example", "condition", *[c for c in ("variant", "trial") if c in states.frame]]
    cells = {k: np.repeat(states.frame[k].to_numpy(), shape[1]) for k in keys}
    where = places(states)
    place = {n: np.tile(np.array([p[n] for p in where], object), shape[0]) for n in ("layer", states.axis)}
    ids = read.top[:, :, 0].ravel()
    known = {int(i): text(int(i)) for i in np.unique(ids) if i >= 0}
    tokens = [known.get(int(i)) for i in ids]
    values = {"rank": read.rank[:, :, -1].ravel(), "prob": read.prob.ravel(), "entropy": read.entropy.ravel(), "token": tokens}
    return _typed(pd.DataFrame({**cells, **place, **values}), states.axis)
