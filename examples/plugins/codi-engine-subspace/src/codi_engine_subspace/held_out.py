"""Held-out pairs of ``train_subspace``: trained against random subspaces, nothing and the whole state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from codi_engine.core.rollout.gradients import Tracer
    from codi_engine_subspace.training import Pair, TrainSubspaceOptions


def measure(
    tracer: Tracer, pairs: Sequence[Pair], states: np.ndarray, layer: int, step: int, basis: np.ndarray, name: str, options: TrainSubspaceOptions
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one row per pair and setting; random subspaces are averaged within their pair."""
    import torch

    from codi_engine_subspace.bases import random_basis
    from codi_engine_subspace.training import interchange

    width = states.shape[1]
    drawn = [random_basis(width, options.dim, options.seed + 1 + r, name) for r in range(options.random)]
    settings: dict[str, list[np.ndarray | None]] = {"none": [None], "random": list(drawn), "trained": [basis], "whole": [np.eye(width, dtype=np.float32)]}
    rows = []
    with torch.no_grad():
        for pair in pairs:
            for setting, several in settings.items():
                found = [interchange(tracer, pair, states, layer, step, None if b is None else torch.from_numpy(b)) for b in several]
                loss, first = float(np.mean([float(f[0]) for f in found])), float(np.mean([f[1] for f in found]))
                rows.append({"layer": layer, "step": step, "example": pair.example, "setting": setting, "cross_entropy": loss, "clean_first": first})
    return rows


def tables(rows: Sequence[Mapping[str, Any]], losses: Sequence[Mapping[str, Any]], options: TrainSubspaceOptions) -> dict[str, pd.DataFrame]:
    """Return ``held_out`` (per place and setting), ``gain`` (trained against random, paired), ``training`` and ``examples``."""
    from scipy import stats

    examples = pd.DataFrame(rows)
    means, gains = [], []
    for (layer, step), part in examples.groupby(["layer", "step"], sort=False):
        place = {"layer": layer, "step": step, "dim": options.dim}
        for setting, mine in part.groupby("setting", sort=False):
            low, high = _interval(mine["cross_entropy"].to_numpy(), options.confidence)
            means.append(
                {**place, "setting": setting, "n": len(mine), "clean_first": mine["clean_first"].mean(), "cross_entropy": mine["cross_entropy"].mean(),
                 "low": low, "high": high}
            )  # fmt: skip
        wide = part.pivot(index="example", columns="setting", values="cross_entropy")
        better = (wide["random"] - wide["trained"]).to_numpy()
        low, high = _interval(better, options.confidence)
        flat = better.std() == 0
        t = float("nan") if flat else float(better.mean() / better.std(ddof=1) * np.sqrt(len(better)))
        p = float("nan") if flat else float(2 * stats.t.sf(abs(t), len(better) - 1))
        d = float("nan") if flat else float(better.mean() / better.std(ddof=1) * (1 - 3 / (4 * len(better) - 5)))
        gains.append({**place, "n": len(better), "gain": float(better.mean()), "low": low, "high": high, "hedges_g": d, "p": p})
    gain = pd.DataFrame(gains)
    tested = gain["p"].notna()
    gain["q"] = np.nan
    if tested.any():
        gain.loc[tested, "q"] = stats.false_discovery_control(gain.loc[tested, "p"].to_numpy(float))
    return {"held_out": pd.DataFrame(means), "gain": gain, "training": pd.DataFrame(losses), "examples": examples}


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    from scipy import stats

    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def summary(found: Mapping[str, pd.DataFrame], trained: int, held: int, options: TrainSubspaceOptions) -> str:
    """Return one line per place."""
    table, gain = found["held_out"], found["gain"]
    lines = [f"subspaces of {options.dim} dimensions trained on {trained} pairs, tried on {held} held-out ones: clean answer first, clean into corrupted"]
    lines += ["", f"{'place':<18}{'none':>8}{'random':>8}{'trained':>9}{'whole':>8}   gain over random (nats)"]
    for _, row in gain.iterrows():
        layer, step = int(row["layer"]), int(row["step"])
        part = table[(table["layer"] == layer) & (table["step"] == step)].set_index("setting")["clean_first"]
        star = "*" if row["q"] < 0.05 else ""
        shares = f"{part['none']:>8.0%}{part['random']:>8.0%}{part['trained']:>9.0%}{part['whole']:>8.0%}"
        lines.append(f"layer {layer} step {step:<5}{shares}   {row['gain']:+.2f}{star} [{row['low']:+.2f}, {row['high']:+.2f}], g = {row['hedges_g']:+.2f}")
    lines += ["", f"*: q < 0.05, BH over {int(gain['p'].notna().sum())} places; paired t-tests of cross-entropy over pairs"]
    lines.append("a subspace that works shows where the answer can be changed, not that the model stores it there (it was searched for)")
    return "\n".join(lines)


def draw(found: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw the share of pairs whose most likely number is the clean one: random beside trained, one cell per place."""
    from matplotlib.figure import Figure

    table = found["held_out"]
    layers, steps = sorted(set(table["layer"])), sorted(set(table["step"]))
    names = ["none", "random", "trained", "whole"]
    figure = Figure(figsize=(2.2 + 0.62 * len(steps) * 2, 2.0 + 1.1 * len(layers)), facecolor="white", layout="constrained")
    figure.suptitle(
        f"Clean answer first, {int(table['n'].max())} held-out pairs, {int(table['dim'].max())} dimensions", fontsize=11, fontweight="bold", color="#1f2430"
    )
    for number, name in enumerate(names):
        ax = figure.add_subplot(2, 2, number + 1)
        grid = table[table["setting"] == name].pivot(index="layer", columns="step", values="clean_first").reindex(index=layers, columns=steps).to_numpy(float)
        image = ax.imshow(grid, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "#1f2430")
        ax.set_title({"none": "nothing edited", "whole": "whole state"}.get(name, f"{name} subspace"), loc="left", fontsize=9.5, color="#1f2430")
        ax.set_xticks(range(len(steps)), [str(s) for s in steps])
        ax.set_yticks(range(len(layers)), [str(v) for v in layers])
        ax.set_xlabel("latent step", fontsize=8.5, color="#6b7280")
        ax.set_ylabel("layer", fontsize=8.5, color="#6b7280")
        ax.tick_params(length=0, labelsize=8.5)
        for side in ax.spines.values():
            side.set_visible(False)
    figure.colorbar(image, ax=figure.axes, fraction=0.03).outline.set_visible(False)
    return {"held_out": figure}
