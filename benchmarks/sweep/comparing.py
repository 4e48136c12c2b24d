"""Contenders in turn in one process: equal numbers first, then interleaved repetitions, medians, and the table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .models import Models, matrix_rates
from .timing import Contender, Pass, Spent, measured

#: largest difference that contenders may have: of logits of std 1, or of mean codes of about that size
WORST = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How many cells were compared, the largest difference, the share of equal tokens (None: no tokens)."""

    cells: int
    worst: float
    tokens: float | None


def agreement(passes: Mapping[str, Pass]) -> Agreement:
    """Compare what contenders computed, each over its own cells, with the one that ran most of them.

    Raises
    ------
    SystemExit: one has no cell in common with it, or differs from it; or no edit changes anything
    """
    name = max(passes, key=lambda one: len(passes[one].kept))
    reference, others = passes[name], {other: one for other, one in passes.items() if other != name}
    if len(reference.kept) > 1 and len({tuple(kept.flatten().tolist()) for kept in reference.kept.values()}) == 1:
        raise SystemExit("all cells are the same: no edit changes anything, so nothing would be compared")
    worst, compared, equal = 0.0, 0, []
    for other, one in others.items():
        shared = set(one.kept) & set(reference.kept)
        if not shared:
            raise SystemExit(f"'{other}' and '{name}' have no cell in common: choose a smaller --every")
        here = float(torch.stack([(one.kept[c].float().cpu() - reference.kept[c].float().cpu()).abs().max() for c in shared]).max())  # NaN stays NaN
        if not here <= WORST:
            raise SystemExit(f"'{other}' differs from '{name}' by {here:.2e}")
        worst, compared = max(worst, here), compared + len(shared)
        equal += [one.tokens[c] == reference.tokens[c] for c in shared] if reference.tokens else []
    tokens = sum(equal) / len(equal) if equal else None
    if tokens is not None and tokens < 1:
        raise SystemExit(f"tokens differ in {1 - tokens:.1%} of the texts")
    return Agreement(compared, worst, tokens)


@dataclass
class Timed:
    """Medians of every contender, the machine's matrix rates (FLOP/s) in the same minutes, and what the last passes gave."""

    spent: dict[str, Spent]
    rates: dict[str, float]
    passes: dict[str, Pass]

    @property
    def rate(self) -> float:
        """Return the larger rate."""
        return max(self.rates.values())


def timed(models: Models, contenders: Sequence[Contender], repeats: int, check: Callable[[Mapping[str, Pass]], None]) -> Timed:
    """Run every contender ``repeats`` times, in turn; the matrix rates are measured before each turn.

    ``check`` sees what the first round gave, before there is a second one or any time is printed.
    """
    spent: dict[str, list[Spent]] = {c.name: [] for c in contenders}
    rates: list[dict[str, float]] = []
    passes: dict[str, Pass] = {}
    for number in range(repeats):
        for one in contenders:
            rates.append(matrix_rates(models, 8))
            passes[one.name], took = measured(models.device, lambda one=one: one.run(one.every))  # type: ignore[misc]
            spent[one.name].append(took.scaled(passes[one.name].factor, passes[one.name].base))
            print(f"round {number + 1}, {one.name}: {spent[one.name][-1].judged:.2f} s", file=sys.stderr, flush=True)
        if number == 0:
            check(passes)
    return Timed({name: _median(all_of) for name, all_of in spent.items()}, {way: statistics.median(r[way] for r in rates) for way in rates[0]}, passes)


def _median(of: Sequence[Spent]) -> Spent:
    gpu = [s.gpu for s in of if s.gpu is not None]
    return Spent(statistics.median(s.cpu for s in of), statistics.median(s.wall for s in of), statistics.median(gpu) if gpu else None)


def table(contenders: Sequence[Contender], result: Timed, floors: Mapping[str, float], against: Sequence[str], cells: int) -> list[dict[str, Any]]:
    """Print a row per contender and return the rows.

    Parameters
    ----------
    floors: name → FLOPs; the shares of ours are printed: on a GPU they are shares of what it can multiply
    against: names of the contenders whose time is divided by each one's; those that did not run are left out
    cells: how many there are
    """
    judged = {name: spent.judged for name, spent in result.spent.items()}
    against = [name for name in against if name in judged]
    gpu = any(s.gpu is not None for s in result.spent.values())
    heads = "".join(f"{'× ' + _short(name):>20}" for name in against)
    print(f"{'':60}{'GPU s' if gpu else 'CPU s':>9}{'wall s':>9}{'cells/s':>9}{heads}")
    rows = []
    for one in contenders:
        seconds = judged[one.name]
        ratios = {name: judged[name] / seconds for name in against}
        shares = {name: flops / result.rate / seconds for name, flops in floors.items()} if one.ours else {}
        said = [f"{share:.0%} {name}" for name, share in shares.items()]
        said += [one.note] if one.note else []
        said += [f"1 of {one.every}, scaled"] if one.every > 1 else []
        columns = f"{seconds:9.2f}{result.spent[one.name].wall:9.2f}{cells / seconds:9.1f}" + "".join(f"{ratio:20.2f}" for ratio in ratios.values())
        print(f"{one.name:<60}{columns}  {'; '.join(said)}", flush=True)
        rows.append({"name": one.name, "seconds": seconds, "wall": result.spent[one.name].wall, "ratios": ratios, "shares": shares, "every": one.every})
    return rows


def _short(name: str) -> str:
    return next(iter(name.split(",")))[:18].strip()
