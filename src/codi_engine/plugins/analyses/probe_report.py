"""Figures and words of ``probes``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm

from codi_engine.plugins.analyses.console import place_grid
from codi_engine.plugins.analyses.figures import DIVERGING, QUIET, SEQUENTIAL
from codi_engine.plugins.analyses.lens_figures import layer_labels, place_labels
from codi_engine.plugins.analyses.lens_summary import place
from codi_engine.plugins.analyses.place_figures import Curve, Map, Places, curves, maps, named

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.plugins.analyses.probes import ProbesOptions
    from codi_engine.plugins.analyses.states import States
    from codi_engine.plugins.analyses.targets import Labels


def measure(classified: bool) -> str:
    """Return the name of the score."""
    return "accuracy" if classified else "R²"


def draw(table: pd.DataFrame, states: Places, options: ProbesOptions, classified: bool, name: str) -> dict[str, Figure]:
    """Return ``score``, ``selectivity`` and ``curve``; nothing where no place could be probed."""
    if table["score"].isna().all():
        return {}
    head = f"{name}: " if name else ""
    n = table.loc[table["n"] > 0, "n"]
    count = f"n = {n.min()}" if n.min() == n.max() else f"n = {n.min()}–{n.max()}"
    note = f"{count} · {states.site} · held-out groups by {options.groups or 'example'}, {options.folds} folds"
    dots = f"dots: q ≥ {options.q:g} against shuffled labels"
    return {
        "score": _map(f"{head}reading {options.target}", note, f"{measure(classified)} · {dots}", "score", table, states, classified),
        "selectivity": _map(f"{head}selectivity for {options.target}", note, "score − control", "selectivity", table, states, classified),
        "curve": _curve(f"{head}reading {options.target}", note, table, states, options, classified),
    }


def _map(title: str, note: str, head: str, column: str, table: pd.DataFrame, states: Places, classified: bool) -> Figure:
    values = table[column].to_numpy(float).reshape(states.shape)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    bound = max(abs(low), abs(high), 1e-9)
    below = low < -0.15 * max(high, 1e-9)
    norm = TwoSlopeNorm(0.0, -bound, bound) if below else Normalize(min(low, 0.0), max(high, 1e-9))
    label = measure(classified) if column == "score" else f"{measure(classified)} above control"
    marks = ~table["significant"].to_numpy(bool).reshape(states.shape) if column == "score" else None
    colours = DIVERGING if below else SEQUENTIAL
    panel = Map(head, values, layer_labels(states), place_labels(states), label, norm, colours, marks, across_name=named(states.axis))
    return maps(title, note, [panel])


def _curve(title: str, note: str, table: pd.DataFrame, states: Places, options: ProbesOptions, classified: bool) -> Figure:
    best = int(np.nanargmax(table["score"].to_numpy(float))) // states.shape[1]
    part = table.iloc[best * states.shape[1] : (best + 1) * states.shape[1]]
    layer = states.layers[best]
    values = {c: part[c].to_numpy(float) for c in ("score", "low", "high", "control", "control_sd", "baseline")}
    base = "commonest class" if classified else "training mean"
    probe = f"{'probe' if layer is None else f'probe, layer {layer}'} ({options.confidence:.0%} interval)"
    lines = [
        Curve(probe, values["score"], "#1d4f8c", values["low"], values["high"]),
        Curve("shuffled labels (± sd)", values["control"], "#d8795b", values["control"] - values["control_sd"], values["control"] + values["control_sd"]),
        Curve(base, values["baseline"], QUIET, dashed=True),
    ]
    return curves(title, note, place_labels(states), named(states.axis), measure(classified), lines)


def summary(table: pd.DataFrame, states: States, options: ProbesOptions, known: Labels, groups: np.ndarray, repeats: int) -> str:
    """Return a grid of scores, the best place with its control, and what the numbers rest on."""
    kind = "ridge regression" if known.classes is None else f"multinomial logistic regression, {len(known.names)} classes"
    log = " (log scale)" if options.log else ""
    count, name = len(np.unique(groups)), options.groups or "example"
    lines = [f"{options.target}{log} from {states.site or states.name}: {kind}; {len(groups):,} cells, {count:,} groups ({name}), {options.folds} folds"]
    if known.missing:
        lines.append(f"{known.missing:,} cells without {options.target} are left out")
    if table["score"].isna().all():
        return "\n".join([*lines, "no place has enough groups with a state and two different labels"])
    lines += ["", f"{measure(known.classes is not None)} on held-out groups", *place_grid(table, "score", "layer", states.axis)]
    best = table.iloc[int(np.nanargmax(table["score"].to_numpy(float)))]
    lines.append(
        f"best: {place(best, states)}: {measure(known.classes is not None)} {best['score']:.3g} [{best['low']:.3g}, {best['high']:.3g}], "
        f"shuffled labels {best['control']:.2g}, selectivity {best['selectivity']:.3g}"
        + (f", commonest class {best['baseline']:.2g}" if known.classes is not None else f", error {best['rmse']:.3g} (of {best['rmse_baseline']:.3g})")
        + f" (n = {best['n']})"
    )
    tests = int(table["p"].notna().sum())
    least = 1 / (repeats + 1)
    lines.append(
        f"{int(table['significant'].sum())} of {tests} places above their controls (q < {options.q:g}, {options.correction.upper()}; {repeats} shuffles)"
    )
    if least >= options.q / tests:
        able = "no place" if least >= options.q else "no place alone"
        lines.append(f"p cannot fall below {least:.2g}: {able} can be told from chance; repeats={int(tests / options.q)} would do")
    lines.append("intervals: over groups, for these probes; what other training groups would change is not in them")
    if table["unfinished"].sum():
        lines.append(f"{int(table['unfinished'].sum()):,} fits stopped before they had converged")
    return "\n".join(lines)
