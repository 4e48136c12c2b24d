"""The pictures of ``words``: diverging bars per target, and an overview over all."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses.figures import DIVERGING, INK, PAPER, QUIET, SEQUENTIAL

MORE, FEWER, FAINT = DIVERGING(0.95), DIVERGING(0.08), "#d7dce3"


def draw(words: pd.DataFrame, top: pd.DataFrame, most: int) -> dict[str, Figure]:
    """Return name → figure: ``overview``, then ``target_1`` … of the targets with the most significant words."""
    if top.empty:
        return {}
    figures = {}
    order = words["target"].value_counts(sort=True) if len(words) else top["target"].value_counts(sort=False) * 0
    targets = [t for t, _ in sorted(order.items(), key=lambda item: (-int(item[1]), str(item[0])))][:most]
    if top["target"].nunique() > 1 and len(words):
        figures["overview"] = overview(words)
    for number, target in enumerate(targets):
        figures[f"target_{number + 1}"] = bars(top[top["target"] == target], str(target))
    return figures


def bars(top: pd.DataFrame, target: str) -> Figure:
    """Draw the z of the log-odds of one target's strongest words, one panel per pair of conditions (at most six)."""
    pairs = list(dict.fromkeys(zip(top["condition"], top["against"], strict=True)))[:6]
    parts = [top[(top["condition"] == a) & (top["against"] == b)].sort_values("z", kind="stable") for a, b in pairs]
    columns = min(len(parts), 3)
    rows = -(-len(parts) // columns)
    tallest = max(len(p) for p in parts)
    panel = max(0.19 * tallest + 0.2, 1.2)
    width, height = max(3.6 * columns + 0.4, 5.6), rows * (panel + 0.75) + 0.8
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    reach = max(float(top["z"].abs().max()), 1e-9) * 1.45
    for number, (part, (a, b)) in enumerate(zip(parts, pairs, strict=True)):
        row, column = divmod(number, columns)
        share = 1.0 / columns
        left = column * share + 0.25 / width
        bottom = 1 - (1.1 + row * (panel + 0.75) + panel) / height
        axes = figure.add_axes((left, bottom, share - 0.5 / width, panel / height))
        known = part["q"].notna().to_numpy()
        colours = [(MORE if z > 0 else FEWER) if k else FAINT for z, k in zip(part["z"], known, strict=True)]
        y = np.arange(len(part))
        axes.barh(y, part["z"], color=colours, height=0.72)
        for at, (z, word) in enumerate(zip(part["z"], part["word"], strict=True)):
            side = -1 if z > 0 else 1
            axes.text(
                side * reach * 0.015, at, _short(str(word)), ha="right" if z > 0 else "left", va="center", fontsize=7.5, color=INK if known[at] else QUIET
            )
        axes.axvline(0, color=QUIET, linewidth=0.7)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-0.6, max(len(part), 1) - 0.4)
        axes.set_yticks([])
        axes.tick_params(axis="x", labelsize=7, colors=QUIET, length=2)
        for spine in ("top", "left", "right"):
            axes.spines[spine].set_visible(False)
        axes.spines["bottom"].set_color("#c9ced6")
        axes.set_title(f"{_short(a, 30)} against {_short(b, 30)}", fontsize=8.5, color=INK, loc="left")
    figure.text(
        0.25 / width,
        1 - 0.28 / height,
        "Words" if target == "all" else f"Words of {_short(target, 60)}",
        fontsize=13,
        fontweight="bold",
        color=INK,
        va="center",
    )
    note = "z of the log-odds (informative prior): right more, left fewer; grey is not significant"
    figure.text(0.25 / width, 1 - 0.54 / height, note, fontsize=8, color=QUIET, va="center")
    return figure


def overview(words: pd.DataFrame) -> Figure:
    """Draw how many targets each of the most widespread words is significant in, by pair of conditions."""
    pair = (words["condition"] + " against " + words["against"]).astype(str)
    pairs, terms = list(dict.fromkeys(pair)), words["word"].astype(str)
    order = [str(w) for w in terms.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable").index[:30]]
    spread, signed = np.zeros((len(order), len(pairs)), int), np.zeros((len(order), len(pairs)))
    rows_of, columns_of = {w: i for i, w in enumerate(order)}, {p: i for i, p in enumerate(pairs)}
    for word, name, z in zip(terms, pair, words["z"], strict=True):
        if word in rows_of:
            spread[rows_of[word], columns_of[name]] += 1
            signed[rows_of[word], columns_of[name]] += np.sign(z)
    rows, columns = spread.shape
    width, height = max(1.2 * columns + 2.6, 5.6), 0.24 * rows + 2.2
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((1.5 / width, 0.95 / height, 1 - 1.8 / width, 1 - 1.75 / height))
    axes.imshow(spread, cmap=SEQUENTIAL, aspect="auto", vmin=0)
    for i, j in zip(*np.nonzero(spread), strict=True):
        sign = "+" if signed[i, j] > 0 else "−" if signed[i, j] < 0 else "±"
        dark = spread[i, j] > 0.55 * spread.max()
        axes.text(j, i, f"{sign}{spread[i, j]:,}", ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    axes.set_yticks(range(rows), [_short(w) for w in order], fontsize=7.5, color=INK)
    axes.set_xticks(range(columns), [_short(p, 34) for p in pairs], fontsize=7.5, color=QUIET, rotation=18, ha="right")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.text(0.25 / width, 1 - 0.3 / height, "Words by the number of targets they change in", fontsize=13, fontweight="bold", color=INK, va="center")
    figure.text(0.25 / width, 1 - 0.56 / height, "+ mostly more, − mostly fewer than in the condition compared with", fontsize=8, color=QUIET, va="center")
    return figure


def _short(text: str, most: int = 18) -> str:
    """Return text that fits and that matplotlib takes as it is (no mathematics, no control characters)."""
    clean = "".join(c if c.isprintable() else "·" for c in text).replace("$", r"\$")
    return clean if len(clean) <= most else clean[: most - 1] + "…"
