"""What trackers show of a run's results: the mean effect of each place, the same by example, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.controls import control_rows

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.results import Run

BASELINE = "baseline"
#: axes that are no place: who was asked, which side, and how often
_WHO = ("condition", "example", "trial", "variant")


@dataclass(frozen=True)
class Effects:
    """Means of a run's metrics; no texts are read for them.

    Attributes
    ----------
    places: one row per condition and place: condition, variant, the axes that are used, the mean over examples of each metric, ``n``
        examples. A mean leaves out examples where the metric is undefined.
    examples: the same by example, ``example`` after ``condition``: the mean over trials
    axes: those that say where and how a cell was edited
    """

    places: pd.DataFrame
    examples: pd.DataFrame
    axes: list[str]
    metrics: list[str]


def effects_of(run: Run) -> Effects:
    """Average a run's metrics: trials first, then examples."""
    import pandas as pd

    codes = pd.DataFrame({axis: _column(run, f"cells/{axis}") for axis in run.axes})
    axes = [a for a in run.axes if a not in _WHO and (codes[a] >= 0).any()]
    keys = [k for k in ("condition", "example", "variant", *axes) if k in codes]
    whole = codes[keys].assign(**{m: _column(run, f"cells/metrics/{m}") for m in run.metrics})
    examples = whole.groupby(keys, sort=False)[run.metrics].mean()
    grouped = examples.groupby([k for k in keys if k != "example"], sort=False)
    places = grouped.mean().assign(n=grouped.size())
    return Effects(_decoded(run, places.reset_index(), keys), _decoded(run, examples.reset_index(), keys), axes, run.metrics)


def _column(run: Run, name: str) -> pd.Series:
    import pandas as pd

    slots, values = run.store.read(name)
    return pd.Series(values, index=slots)


def _decoded(run: Run, frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Replace codes by their labels, None where an axis does not apply; labels stay what they are, numbers or text."""
    import pandas as pd

    for key in (k for k in keys if k in frame):
        labels = run.store.labels(key)
        frame[key] = pd.Series([None if c < 0 else labels[c] for c in frame[key]], index=frame.index, dtype=object)
    return frame


def scalar_names(effects: Effects) -> dict[str, float]:
    """Return ``aggregate/layer_3/pos_2/mean_kl`` → value for every place of the experiment's own conditions.

    The condition's name stands first where there are several; controls and the unedited cells have no key.
    """
    means, axes, metrics = effects.places, effects.axes, effects.metrics
    own = means[~control_rows(means["condition"]) & (means["condition"] != BASELINE)]
    several = own["condition"].nunique() > 1
    found: dict[str, float] = {}
    for row in own.to_dict("records"):
        parts = [_part(axis, row[axis]) for axis in axes if row[axis] is not None]
        place = "/".join([*([str(row["condition"])] if several else []), *parts])
        for metric in metrics:
            if row[metric] == row[metric]:
                found["/".join(p for p in ("aggregate", place, f"mean_{metric}") if p)] = float(row[metric])
    return found


def _part(axis: str, value: Any) -> str:
    return f"{'pos' if axis in ('step', 'position') else axis}_{value}".replace("/", "_")


def pictures(folders: Mapping[str, Path], figures: Mapping[str, Path]) -> dict[str, Path]:
    """Return ``analysis/figure`` → PNG of the analyses that were told of; else the figures by their names."""
    found = {f"{name}/{path.stem}": path for name, folder in folders.items() for path in sorted(folder.glob("*.png"))}
    return found or {name: path for name, path in figures.items() if path.suffix == ".png"}


def plain(value: Any) -> Any:
    """Return a value as None, a number or text."""
    if value is None or value != value:
        return None
    if isinstance(value, (bool, int, float, str)):
        return value
    return value.item() if hasattr(value, "item") else str(value)
