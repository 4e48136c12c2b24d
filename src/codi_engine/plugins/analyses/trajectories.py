"""``trajectories``: where the latent states of edited runs go: how near to their own, the clean and the corrupted run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.controls import without_controls
from codi_engine.core.plugin import Analysis, AnalysisResult, Options
from codi_engine.plugins.analyses.selection import place_axes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.latent_states import States

#: reference → what its curves are called
REFERENCES = {"own": "its own unedited run", "clean": "the clean run", "corrupted": "the corrupted run"}
UNEDITED = "unedited"
_GRIDS = 4  # that the console shows


class TrajectoriesOptions(Options):
    """``site``: which captured states (default ``latent_out``); ``resid_post.3@latent`` takes one layer out of many.

    ``conditions``: which ones (default all). ``at``: values of the edit's other axes: ``{layer: 3}``. ``confidence``: of
    intervals. ``draw``: pictures at most.
    """

    site: str | None = None
    conditions: list[str] | None = Field(default=None, min_length=1)
    at: dict[str, int | float | str] = Field(default_factory=dict)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    draw: int = Field(default=6, ge=0)


class Trajectories(Analysis[TrajectoriesOptions]):
    """Similarity of edited runs' latent states to unedited ones, step by step: cosine and relative distance.

    References are the run's own prompt unedited and, for pairs, the clean and the corrupted side unedited; the unedited run's
    own similarity to the two sides is given beside. The unit of inference is the example.
    """

    name = "trajectories"
    Options = TrajectoriesOptions

    def check(self, facts: Foreseen) -> None:
        facts.need_capture(self.options.site, "latent_out")
        for name in self.options.conditions or ():
            facts.need_condition(name, "conditions")
        for axis in self.options.at:
            if axis not in facts.all_axes:
                raise UserError(f"at: '{axis}' is no axis of the edits; {nearest(axis, facts.all_axes)}")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses.latent_states import read_states

        run = runs[0]
        states = read_states(run, self.options.site, self.name)
        axes = [a for a in place_axes(run) if a in states.cells and states.cells[a].notna().any()]
        rows = self._rows(states, axes)
        table = similarity_table(states, rows, axes, self.options.confidence)
        facts = {"axes": list(axes), "site": str(states.site), "layers": list(states.layers)}
        return AnalysisResult({"trajectories": table}, summary=_summary(table, axes, states), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import trajectory_figures

        return trajectory_figures.draw(tables["trajectories"], trajectory_figures.Shown(**about["facts"]), self.options)

    def _rows(self, states: States, axes: Sequence[str]) -> pd.DataFrame:
        """Return the cells to be compared."""
        cells, options = states.cells, self.options
        known = [str(c) for c in cells["condition"].unique()]
        for name in options.conditions or ():
            if name not in known:
                raise UserError(f"{self.name}: conditions: '{name}' has no captured states; {nearest(name, known)}")
        keep = cells["condition"].isin(options.conditions or without_controls(known))
        for axis, value in options.at.items():
            if axis not in axes:
                raise UserError(f"{self.name}: at: '{axis}' is no axis of the edits; {nearest(axis, axes)}")
            keep &= (cells[axis].astype(str) == str(value)) | cells[axis].isna()
        if not keep.any():
            raise UserError(f"{self.name}: at: no cell has {', '.join(f'{a} {v}' for a, v in options.at.items())}")
        return cells[keep]


def similarity_table(states: States, cells: pd.DataFrame, axes: Sequence[str], confidence: float) -> pd.DataFrame:
    """Return one row per condition, point of the edit, reference, captured layer and state: n, cosine and relative distance with intervals.

    ``edit`` is ``unedited`` in the rows that compare the unedited run with the pair's two sides.
    """
    import pandas as pd

    variants = sorted({v for _, v in states.unedited})
    sides = [v for v in REFERENCES if v in variants]
    parts = []
    for condition, of_condition in cells.groupby("condition", sort=False):
        variant = str(of_condition["variant"].iloc[0])
        for side in sides:
            parts.append(_compared(states, of_condition.drop_duplicates("example"), side, confidence, True, {"condition": condition, "edit": UNEDITED}))
        varying = [a for a in axes if of_condition[a].nunique() > 1]
        groups = of_condition.groupby(list(axes), dropna=False, sort=False) if axes else [((), of_condition)]
        for key, part in groups:
            point = dict(zip(axes, key, strict=True))
            names = {"condition": condition, "edit": _edit_name({a: point[a] for a in varying} or point), **point}
            parts += [_compared(states, part, side, confidence, False, names) for side in ("own", *sides)]
        if variant not in variants:
            raise UserError(f"trajectories: '{condition}' has no unedited '{variant}' states")
    table = pd.concat(parts, ignore_index=True)
    first = ["condition", "edit", *axes, "reference", "state_layer", "state"]
    for axis in axes:
        table[axis] = table[axis].convert_dtypes()  # layers are whole numbers beside rows that have none
    return table[[*first, *[c for c in table.columns if c not in first]]]


def _edit_name(point: dict[str, Any]) -> str:
    """Return how an edit is called within its condition: ``step 0+1``, or ``layer 2 step 0+1`` where both vary."""
    return " ".join(f"{a} {v}" for a, v in point.items() if v == v and v is not None) or "edited"


def _compared(states: States, part: pd.DataFrame, reference: str, confidence: float, unedited: bool, names: dict[str, Any]) -> pd.DataFrame:
    """Compare rows with one reference: trials and donors are averaged within examples first."""
    import numpy as np
    import pandas as pd

    from codi_engine.plugins.analyses import latent_states

    rows = [int(i) for i in part.index]
    pieces = []
    for some in latent_states.chunks(rows):
        new = states.base(some) if unedited else states.edited[list(some)]
        old = states.base(some, None if reference == "own" else reference)
        pieces.append(np.stack([latent_states.cosine(new, old), latent_states.distance(new, old)], 1))
    values = _by_example(np.concatenate(pieces), part["example"].to_numpy())
    mean, low, high, n = mean_interval(values, confidence)
    layers, steps = len(states.layers), len(states.steps)
    frame = pd.DataFrame({"state_layer": np.repeat(np.array(states.layers, object), steps), "state": np.tile(states.steps, layers)})
    frame["state_layer"] = frame["state_layer"].astype("Int64")
    for number, what in enumerate(("cosine", "distance")):
        frame["n" if number == 0 else "n_distance"] = n[number].ravel()
        for name, array in ((what, mean), (f"{what}_ci_low", low), (f"{what}_ci_high", high)):
            frame[name] = array[number].ravel()
    return frame.assign(reference=reference, **names)


def _by_example(values: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Return examples × … means over each example's rows."""
    import numpy as np

    _, place = np.unique(examples.astype(str), return_inverse=True)
    if len(values) == place.max() + 1:
        return values
    out = np.zeros((place.max() + 1, *values.shape[1:]))
    np.add.at(out, place, values)
    return out / np.bincount(place).reshape(-1, *[1] * (values.ndim - 1))


def mean_interval(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, low, high, n over the first axis, NaN left out; no interval (NaN) for fewer than two values."""
    import numpy as np
    from scipy import stats

    there = ~np.isnan(values)
    n = there.sum(0)
    filled = np.where(there, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / n
        variance = np.where(there, (values - mean) ** 2, 0.0).sum(0) / (n - 1)
        half = stats.t.ppf(0.5 + confidence / 2, np.maximum(n - 1, 1)) * np.sqrt(variance / n)
    half = np.where(n > 1, half, np.nan)
    return mean, mean - half, mean + half, n


# ------------------------------------------------------------------------------------------------- console


def shown_references(table: pd.DataFrame) -> list[str]:
    """Return the references worth showing: the two sides of pairs, else the own unedited run."""
    there = set(table["reference"])
    return [r for r in ("clean", "corrupted") if r in there] or ["own"]


def _summary(table: pd.DataFrame, axes: Sequence[str], states: States) -> str:
    from codi_engine.plugins.analyses.stepping import n_text

    part = table
    lines = [f"{states.site}: cosine to unedited states, mean of {n_text(table['n'])} examples"]
    if len(states.layers) > 1:
        part = table[table["state_layer"] == states.layers[-1]]
        lines.append(f"shown: layer {states.layers[-1]}; the table has all {len(states.layers)}")
    grids = [(c, r) for c in dict.fromkeys(part["condition"]) for r in shown_references(part)]
    for condition, reference in grids[:_GRIDS]:
        lines += ["", *_grid(part[(part["condition"] == condition) & (part["reference"] == reference)], str(condition), reference)]
    if len(grids) > _GRIDS:
        lines += ["", f"and {len(grids) - _GRIDS} more, in the table"]
    return "\n".join(lines)


def _grid(part: pd.DataFrame, condition: str, reference: str) -> list[str]:
    states = list(dict.fromkeys(part["state"]))
    names = list(dict.fromkeys(part["edit"]))
    shown = names[:24]
    width = max(len(n) for n in shown) + 2
    lines = [f"{condition}: cosine to {REFERENCES[reference]}, by state out of step", " " * width + "".join(f"{'bot' if s < 0 else s:>7}" for s in states)]
    for name in shown:
        row = part[part["edit"] == name].set_index("state")["cosine"]
        lines.append(f"{name:<{width}}" + "".join(f"{row[s]:>7.3f}" if row[s] == row[s] else f"{'–':>7}" for s in states))
    return lines + ([f"and {len(names) - len(shown)} more edits, in the table"] if len(names) > len(shown) else [])
