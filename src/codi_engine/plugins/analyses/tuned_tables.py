"""Tables and console text of ``tuned_lens``: how well the translators do on held-out examples, and what is read through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses import lens_tables
from codi_engine.plugins.analyses.console import place_grid
from codi_engine.plugins.analyses.effects import statistics

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.sought import Sought
    from codi_engine.plugins.analyses.states import States
    from codi_engine.plugins.analyses.tuned_lens import Division, TunedLensOptions

LENSES = ("plain", "tuned")


@dataclass(frozen=True)
class _Shown:
    """The held-out cells, with the places of all of them: what the tables of ``logit_lens`` read."""

    frame: pd.DataFrame
    layers: list[Any]
    places: list[Any]
    axis: str


def tables(
    states: States, held: pd.DataFrame, groups: np.ndarray, division: Division, found: Sequence[Mapping[str, np.ndarray]],
    sought: Sought, text: Callable[[int], str], options: TunedLensOptions,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Return ``fit``, ``lens`` and ``tokens``, of held-out examples."""
    shown = _Shown(held, states.layers, states.places, states.axis)
    out = {"fit": _fit_table(states, groups[division.held], found, options)}
    lenses, tokens = [], []
    for name in LENSES:
        read = _lensed(found, name)
        lenses.append(lens_tables.lens_table(shown, read, sought, options).assign(lens=name))  # type: ignore[arg-type]
        tokens.append(lens_tables.token_table(shown, read, text, options.top).assign(lens=name))  # type: ignore[arg-type]
    out["lens"], out["tokens"] = (_first(pd.concat(parts, ignore_index=True), "lens") for parts in (lenses, tokens))
    return out


def _first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    return table[[column, *[c for c in table.columns if c != column]]]


def _lensed(found: Sequence[Mapping[str, np.ndarray]], name: str) -> lens_tables.Lensed:
    joined = {n: np.stack([p[f"{name}_{n}"] for p in found], 1) for n in ("rank", "prob", "entropy", "top")}
    rank = joined["rank"][:, :, None]
    return lens_tables.Lensed(rank, np.full(rank.shape, np.nan), joined["prob"], joined["entropy"], joined["top"])


def _fit_table(states: States, groups: np.ndarray, found: Sequence[Mapping[str, np.ndarray]], options: TunedLensOptions) -> pd.DataFrame:
    """Return per place: KL on training and held-out states, plain and tuned, and the paired gain with its test; groups are averaged first."""
    rows = []
    for number, place in enumerate(found):
        layer, step = divmod(number, states.shape[1])
        row: dict[str, Any] = {"layer": states.layers[layer], states.axis: states.places[step], "n_train": int(place["n_train"])}
        row |= {f"{name}_train": float(place[f"{name}_train"].mean()) for name in LENSES}
        kl = {name: _by_group(place[f"{name}_kl"], groups) for name in LENSES}
        gain = statistics(kl["plain"] - kl["tuned"], options.confidence, False)
        row |= {"n": gain["n"], "constant": float(np.nanmean(_by_group(place["constant_kl"], groups)))}
        for name in LENSES:
            at = statistics(kl[name], options.confidence, False)
            row |= {name: at["mean"], f"{name}_low": at["ci_low"], f"{name}_high": at["ci_high"]}
        row |= {"gain": gain["mean"], "gain_low": gain["ci_low"], "gain_high": gain["ci_high"], "hedges_g": gain["hedges_g"], "p": gain["p"]}
        for name in LENSES:
            row[f"{name}_agreement"] = _agreement(place[f"{name}_top"][:, 0], place["first"])
        penalty = float(place["penalty"])
        rows.append(
            row | {"penalty": penalty, "note": "" if np.isfinite(penalty) else "no translator did better than the plain lens inside the training groups"}
        )
    table = pd.DataFrame(rows).astype({"layer": "Int64", states.axis: "Int64"})
    table["q"] = adjust(table["p"].to_numpy(float), options.correction)
    table["significant"] = table["q"] < options.q
    return table


def _by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return one mean per group, NaN left out."""
    codes = np.unique(groups, return_inverse=True)[1]
    known = np.isfinite(values)
    count, total = np.bincount(codes, known), np.bincount(codes, np.where(known, values, 0.0))
    mean: np.ndarray = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


def _agreement(first: np.ndarray, wanted: np.ndarray) -> float:
    known = (first >= 0) & (wanted >= 0)
    return float((first[known] == wanted[known]).mean()) if known.any() else float("nan")


# ------------------------------------------------------------------------------------------------- console


def summary(found: Mapping[str, pd.DataFrame], states: States, options: TunedLensOptions, notes: Sequence[str]) -> str:
    """Return grids of held-out KL, what the translators gain, where they do not help, and what few examples mean."""
    fit, lens = found["fit"], found["lens"]
    what = "the last layer's readout at the same step" if options.target == "latent" else "the distribution of the answer's number"
    n_train, n = int(fit["n_train"].max()), int(fit["n"].max())
    lines = [f"{states.name}: translators trained on {n_train:,} states per place, tested on {n:,} held-out {'groups' if options.groups else 'examples'}"]
    lines += [f"target: {what}; KL in nats, lower is better"]
    for name in LENSES:
        lines += ["", f"held-out KL, {name} lens", *place_grid(fit.drop(columns="significant"), name, "layer", states.axis)]
    lines += ["", *_verdict(fit, states, options, n_train)]
    if lens["rank"].notna().any():
        for name in LENSES:
            lines += ["", f"median rank of the answer, {name} lens", *place_grid(lens[lens["lens"] == name], "rank", "layer", states.axis)]
    return "\n".join([*lines, *notes, "a lens says what can be read from a state, not what the model uses"])


def _verdict(fit: pd.DataFrame, states: States, options: TunedLensOptions, n_train: int) -> list[str]:
    better = int((fit["significant"] & (fit["gain"] > 0)).sum())
    worse = int((fit["significant"] & (fit["gain"] < 0)).sum())
    plain = int((~np.isfinite(fit["penalty"])).sum())
    rule = f"q < {options.q:g}, {options.correction.upper()} over {int(fit['p'].notna().sum())} places"
    lines = [f"tuned better than plain at {better} of {len(fit)} places, worse at {worse} ({rule}); plain lens kept at {plain}"]
    best = fit.iloc[int(fit["gain"].to_numpy().argmax())]
    lines.append(
        f"largest gain: layer {best['layer']} {states.axis} {best[states.axis]}: {best['plain']:.3g} → {best['tuned']:.3g} nats "
        f"(gain {best['gain']:+.3g} [{best['gain_low']:+.3g}, {best['gain_high']:+.3g}], n = {best['n']})"
    )
    poor = int((fit["tuned"] >= fit["constant"]).sum())
    mean = f"{fit['constant'].mean():.3g} nats on average"
    lines.append(f"the mean target of the training states, given to every state alike, has {mean}; the tuned lens does not beat it at {poor} places")
    trained = fit[np.isfinite(fit["penalty"])]
    if len(trained):
        train, held = trained["tuned_train"].mean(), trained["tuned"].mean()
        lines.append(f"over-fit: {train:.3g} nats on training states, {held:.3g} on held-out ones (mean of {len(trained)} trained places)")
    if n_train < states.width:
        lines.append(f"{n_train:,} training states are fewer than the width ({states.width}): a translator can learn them by heart; read held-out numbers only")
    return lines
