"""Tables of ``latent_film``: the film of a few examples, and how often edits change what latents say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from codi_engine.core.runs.results import BASELINE
from codi_engine.plugins.analyses.console import place_grid
from codi_engine.plugins.analyses.effects import are_shares, statistics

#: rows of the table of films; fewer examples are shown where it would have more
_FILM_ROWS = 300_000
#: axes that say whose cell it is; every other axis says how it was edited
_OWN = ("example", "condition", "variant")
#: what the console shows at most
_STRIPS, _GRIDS, _COLUMNS = 6, 4, 24


@dataclass(frozen=True)
class Filmed:
    """The first tokens of some cells' latents.

    ``frame``: one row per cell; ``steps``: −1 for bot; ``ids`` (−1: no state) and ``probabilities``: cells × states × k.
    """

    frame: pd.DataFrame
    steps: list[int]
    ids: np.ndarray
    probabilities: np.ndarray


def own_keys(frame: pd.DataFrame) -> list[str]:
    """Return the columns that name an unedited prompt."""
    return [k for k in ("example", "variant") if k in frame]


def film(films: Sequence[Filmed], examples: Sequence[str], axes: Sequence[str], text: Callable[[int], str]) -> tuple[pd.DataFrame, list[str]]:
    """Return one row per cell, state and rank of the examples (as many of them as the table has room for), and notes.

    Parameters
    ----------
    axes: of the run; those that say how a cell was edited become ``edited_<axis>``
    """
    per_example = max(sum(int((f.frame["example"].astype(str) == e).sum()) * f.ids[0].size for f in films if len(f.ids)) for e in examples)
    room = max(_FILM_ROWS // max(per_example, 1), 1)
    shown = list(examples)[:room]
    notes = (
        []
        if len(shown) == len(examples)
        else [f"the film has {len(shown)} of {len(examples)} examples: one has {per_example:,} rows; choose with conditions, at"]
    )
    edits = [a for a in axes if a not in _OWN]
    table = pd.concat([_film_rows(f, shown, edits, text) for f in films], ignore_index=True)
    named = [c for c in (*_OWN, *(f"edited_{a}" for a in edits), "step", "rank", "token", "probability") if c in table]
    table = table[named].astype({c: object for c in named if c.startswith("edited_")})
    for column in edit_columns(table):
        table[column] = table[column].where(table[column].notna(), None).convert_dtypes()
    order = {e: i for i, e in enumerate(shown)}
    return table.sort_values("example", key=lambda c: c.map(order), kind="stable").reset_index(drop=True), notes


def _film_rows(filmed: Filmed, examples: Sequence[str], edits: Sequence[str], text: Callable[[int], str]) -> pd.DataFrame:
    frame = filmed.frame
    mine = np.flatnonzero(frame["example"].astype(str).isin(examples).to_numpy())
    ids, count, k = filmed.ids[mine], len(filmed.steps), filmed.ids.shape[2]
    each = frame.iloc[mine]
    edited = bool((each["condition"] != BASELINE).any())
    rows: dict[str, object] = {a: np.repeat(each[a].astype(str).to_numpy(object), count * k) for a in _OWN if a in each}
    for axis in edits:
        if edited and axis in each and each[axis].notna().any():
            rows[f"edited_{axis}"] = np.repeat(each[axis].to_numpy(object), count * k)
    rows["step"] = np.tile(np.repeat(filmed.steps, k), len(mine))
    rows["rank"] = np.tile(np.arange(1, k + 1), len(mine) * count)
    known = {int(i): text(int(i)) for i in np.unique(ids) if i >= 0}
    rows["token"] = [known.get(int(i)) for i in ids.ravel()]
    rows["probability"] = filmed.probabilities[mine].ravel()
    table = pd.DataFrame(rows)
    return table[table["token"].notna()]


def changes(base: Filmed, edited: Filmed, axes: Sequence[str], confidence: float) -> pd.DataFrame:
    """Return one row per condition, edited place and state: how often the first token is another one, and how many of the first k are shared.

    Donors and trials are averaged within their example. ``changed`` is a share of examples (Wilson's interval where each has one
    cell), ``overlap`` the mean share of the k tokens that are the same, both against the same prompt unedited.
    """
    keys = own_keys(base.frame)
    where = {key: i for i, key in enumerate(base.frame[keys].astype(str).itertuples(index=False, name=None))}
    own = np.array([where[key] for key in edited.frame[keys].astype(str).itertuples(index=False, name=None)])
    before, after = base.ids[own], edited.ids
    absent = (before[:, :, 0] < 0) | (after[:, :, 0] < 0)
    changed = np.where(absent, np.nan, before[:, :, 0] != after[:, :, 0])
    overlap = np.where(absent, np.nan, (before[:, :, :, None] == after[:, :, None]).any(3).mean(2))
    rows = []
    groups = edited.frame.groupby(["condition", *axes], dropna=False, sort=False).indices if axes else edited.frame.groupby(["condition"], sort=False).indices
    for key, cells in sorted(groups.items(), key=lambda item: int(item[1][0])):
        named = dict(zip(["condition", *[f"edited_{a}" for a in axes]], key if isinstance(key, tuple) else (key,), strict=True))
        examples = pd.factorize(edited.frame["example"].iloc[cells])[0]
        for at, step in enumerate(edited.steps):
            first, shared = (_averaged(v[cells, at], examples) for v in (changed, overlap))
            share = statistics(first, confidence, are_shares(pd.Series(first)))
            same = statistics(shared, confidence, False)
            row = {**named, "step": step, "n": share["n"], "changed": share["mean"], "changed_low": share["ci_low"], "changed_high": share["ci_high"]}
            rows.append(row | {"overlap": same["mean"], "overlap_low": same["ci_low"], "overlap_high": same["ci_high"], "note": share["note"]})
    table = pd.DataFrame(rows)
    for axis in axes:
        table[f"edited_{axis}"] = table[f"edited_{axis}"].convert_dtypes()
    return table


def _averaged(values: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Return one value per example, NaN where none of its cells has one."""
    known = ~np.isnan(values)
    count = np.bincount(examples, known)
    total = np.bincount(examples, np.where(known, values, 0.0))
    mean: np.ndarray = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


# ------------------------------------------------------------------------------------------------- console


def edit_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that say where a cell was edited."""
    return [str(c) for c in table if str(c).startswith("edited_")]


def summary(tables: Mapping[str, pd.DataFrame], examples: int, notes: Sequence[str]) -> str:
    """Return strips of the first unedited examples, and a grid of changes per condition."""
    table = tables["film"]
    lines = [f"latent_out through the unembedding: {examples:,} examples; the film shows {table['example'].nunique()} of them"]
    lines += ["", "unedited, the first token of each latent (bot is c_0, k is c_{k+1}, the state out of step k)"]
    lines += _strips(table[(table["condition"] == BASELINE) & (table["rank"] == 1)])
    changed = tables.get("changes")
    if changed is not None:
        for condition in list(dict.fromkeys(changed["condition"]))[:_GRIDS]:
            lines += ["", *_grid(changed[changed["condition"] == condition], str(condition))]
    return "\n".join([*lines, *notes])


def _strips(first: pd.DataFrame) -> list[str]:
    if first.empty:
        return []
    steps = list(dict.fromkeys(first["step"]))
    names = [k for k in ("example", "variant") if k in first]
    shown = [(" ".join(map(str, key)), part) for key, part in list(first.groupby(names, sort=False))[:_STRIPS]]
    label = max(len(name) for name, _ in shown) + 2
    lines = [" " * label + "".join(f"{'bot' if s < 0 else s:>9}" for s in steps)]
    for name, part in shown:
        said = part.set_index("step")["token"].to_dict()
        lines.append(f"{name:<{label}}" + "".join(f"{_short(said.get(s)):>9}" for s in steps))
    return lines


def _short(token: str | None) -> str:
    """Return a token as one visible word of the grid."""
    if token is None:
        return "–"
    text = token.strip() or repr(token).strip("'")
    return (text if text.isprintable() else ascii(text).strip("'"))[:8]


def _grid(part: pd.DataFrame, condition: str) -> list[str]:
    varying = [c for c in edit_columns(part) if part[c].notna().any() and part[c].nunique() > 1]
    across = varying[-1] if varying else None
    n = f"n = {part['n'].min()}" if part["n"].nunique() == 1 else f"n = {part['n'].min()}–{part['n'].max()}"
    head = f"{condition}: share of examples whose first token changed ({n}), by state" + (f" (down) and {across.replace('_', ' ')}" if across else "")
    mean = part.groupby(["step", *varying[-1:]], sort=False, dropna=False)["changed"].mean().reset_index()
    if len(varying) > 1:
        head += f"; mean over {', '.join(v.replace('_', ' ') for v in varying[:-1])}"
    mean = mean.rename(columns={"step": "state"}).assign(state=["bot" if s < 0 else str(s) for s in mean["step"]])
    if across is not None and mean[across].nunique() > _COLUMNS:
        return [head, f"  {mean[across].nunique()} columns, too many for here; the table changes and the figure have them"]
    if across is None:
        return [head, *place_grid(mean.assign(edited="edited"), "changed", "state", "edited")]
    return [head, *place_grid(mean, "changed", "state", across)]
