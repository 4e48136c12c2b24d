"""How the cells of a run are arranged for comparisons: target × condition × example × trial."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.controls import is_control

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

_REPLICATES = ("trial", "donor")
_LAYER = re.compile(r"\bL(\d{1,9})\b|\blayer[ =]?(\d{1,9})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Arrangement:
    """Where each comparable cell lies.

    A **target** is one point of the swept axes (the patched feature, a layer and step …); conditions are compared within it.
    Trials and donors of an example are its replicates; its variants (clean, corrupted) are examples of their own, and those that
    no edited cell has are left out.

    Attributes
    ----------
    axes: names of the axes that make a target
    targets: per target its labels on them
    conditions, examples: labels
    replicates: most cells that one example has in one condition
    slots: targets × own conditions × examples × replicates, −1 where there is no cell
    common: shared conditions × examples × replicates, for conditions that have no target of their own (a baseline)
    own, shared: indices into ``conditions``
    """

    axes: tuple[str, ...]
    targets: list[tuple[Any, ...]]
    conditions: list[str]
    examples: list[Any]
    replicates: int
    slots: np.ndarray
    common: np.ndarray
    own: list[int]
    shared: list[int]

    def name(self, target: int) -> str:
        """Return a target in words: its label, or ``layer 3 step 2``."""
        labels = self.targets[target]
        if len(labels) == 1 and isinstance(labels[0], str):
            return labels[0]
        at = dict(zip(self.axes, labels, strict=True))
        if at.get("layer") is not None and layer_of(str(at.get("feature"))) == at["layer"]:  # L2-17 says its layer
            at.pop("layer")
        if [v for v in at.values() if v is not None] == [at.get("feature")]:
            return str(at["feature"])
        return " ".join(f"{a} {v}" for a, v in at.items() if v is not None) or "all"

    def layer(self, target: int) -> int | None:
        """Return the layer of a target: its ``layer`` axis, or the ``L9`` in its label."""
        labels = dict(zip(self.axes, self.targets[target], strict=True))
        if isinstance(labels.get("layer"), int):
            return int(labels["layer"])
        return layer_of(self.name(target))

    def pairs(self, wanted: Sequence[Sequence[str]] | None, where: str) -> list[tuple[int, int]]:
        """Return the pairs of conditions to compare: those wanted; else every one against ``baseline``; else all pairs.

        Raises
        ------
        UserError: an unknown condition, or fewer than two
        """
        known = self.conditions
        if wanted is not None:
            for pair in wanted:
                for name in pair:
                    if name not in known:
                        raise UserError(f"{where}: pairs: condition '{name}': {nearest(name, known)}")
            return [(known.index(a), known.index(b)) for a, b in wanted]
        if len(known) < 2:
            raise UserError(f"{where}: needs two conditions to compare; the run has {_listed(known)}")
        if "baseline" in known:
            base = known.index("baseline")
            return [(i, base) for i in range(len(known)) if i != base]
        return [(i, j) for i in range(len(known)) for j in range(i)]


def layer_of(label: str) -> int | None:
    """Return the layer that a label such as ``L26-1069`` names."""
    found = _LAYER.search(label)
    return int(found[1] or found[2]) if found else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{n}'" for n in names) or "none"


def arrange(run: Run, where: str, array: str | None = None, asked: Collection[str] = ()) -> Arrangement:
    """Arrange a run's finished cells, those of controls left out.

    Parameters
    ----------
    where: name of the analysis, for errors
    array: only cells whose unit wrote it
    asked: conditions asked for by name; controls among them are kept

    Raises
    ------
    UserError: no cells, or two cells in one place
    """
    codes = {axis: run.store.codes(axis) for axis in run.axes}
    slots = run.store.slots
    if array is not None:
        kept = np.isin(slots, run.store.read_slots(array), assume_unique=True)
        codes, slots = {a: c[kept] for a, c in codes.items()}, slots[kept]
    if len(slots) == 0:
        raise UserError(f"{where}: {run.path} has no finished cells" + (f" with '{array}'" if array else ""))
    kept = _comparable(run, codes, asked) & ~np.isin(slots, run.marked)
    codes, slots = {a: c[kept] for a, c in codes.items()}, slots[kept]
    labels = {axis: run.store.labels(axis) for axis in codes}
    swept = (a for a in run.axes if a not in ("example", "condition", "variant", *_REPLICATES) and (codes[a] >= 0).any())
    axes = tuple(a for a in swept if a != "layer" or not _in_features(codes, labels))
    target, targets = _points([codes[a] for a in axes], [labels[a] for a in axes], len(slots))
    condition, conditions = _points([codes["condition"]], [labels["condition"]], len(slots))
    units = [a for a in ("example", "variant") if a in codes and (a == "example" or len(np.unique(codes[a])) > 1)]
    example, examples = _points([codes[a] for a in units], [labels[a] for a in units], len(slots))
    repeat, repeats = _points([codes[a] for a in _REPLICATES if a in codes], [labels[a] for a in _REPLICATES if a in codes], len(slots))
    nowhere = next((i for i, t in enumerate(targets) if axes and all(v is None for v in t)), None)
    names = [str(c[0]) for c in conditions]
    shared = [i for i in range(len(names)) if nowhere is not None and (target[condition == i] == nowhere).all()] if len(targets) > 1 else []
    own = [i for i in range(len(names)) if i not in shared]
    if nowhere is not None and shared:
        targets = [t for i, t in enumerate(targets) if i != nowhere]
        target = target - (target > nowhere)
    shape = (len(examples), len(repeats))
    place = np.full(len(names), -1)
    place[own] = np.arange(len(own))
    in_common = np.isin(condition, shared)
    grid = _grid((len(targets), len(own), *shape), (target, place[condition], example, repeat), slots, ~in_common, where)
    place[shared] = np.arange(len(shared))
    common = _grid((len(shared), *shape), (place[condition], example, repeat), slots, in_common, where)
    return Arrangement(axes, targets, names, [_example(e) for e in examples], len(repeats), grid, common, own, shared)


def _in_features(codes: dict[str, np.ndarray], labels: dict[str, list[Any]]) -> bool:
    """Say whether each cell's layer is that which its feature names (L26-1069): then a target is the feature alone."""
    if "feature" not in codes:
        return False
    placed = codes["layer"] >= 0
    pairs = np.unique(np.stack([codes["feature"][placed], codes["layer"][placed]], 1), axis=0).tolist()
    return all(f >= 0 and layer_of(str(labels["feature"][f])) == labels["layer"][layer] for f, layer in pairs)


def _comparable(run: Run, codes: dict[str, np.ndarray], asked: Collection[str]) -> np.ndarray:
    """Return which cells can be compared: no controls (but those asked for), unedited ones only of variants that edited cells have too."""
    labels = run.store.labels("condition")
    left_out = [i for i, name in enumerate(labels) if is_control(name) and name not in asked]
    kept: np.ndarray = ~np.isin(codes["condition"], left_out)
    if "variant" not in codes or "baseline" not in labels:
        return kept
    unedited = codes["condition"] == labels.index("baseline")
    edited = np.unique(codes["variant"][kept & ~unedited])
    return kept & (~unedited | np.isin(codes["variant"], edited)) if len(edited) else kept


def _example(point: tuple[Any, ...]) -> Any:
    """Return an example's label; with its variant where several are compared."""
    return "all" if not point else point[0] if len(point) == 1 else f"{point[0]} ({point[1]})"


def _points(codes: list[np.ndarray], labels: list[list[Any]], count: int) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    """Return per cell the number of its point, and the points' labels, sorted by label rank."""
    if not codes:
        return np.zeros(count, np.int64), [()]
    key, sizes = np.zeros(count, np.int64), [len(names) + 1 for names in labels]
    for code, names, size in zip(codes, labels, sizes, strict=True):
        key = key * size + _rank(names)[code]
    number, keys = _numbered(key, int(np.prod(sizes)))
    order = [_by_rank(names) for names in labels]
    points = np.stack(np.unravel_index(keys, sizes), 1).tolist()
    return number, [tuple(None if r == 0 else names[r - 1] for r, names in zip(row, order, strict=True)) for row in points]


def _numbered(key: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each key's number among the keys there are, and those keys, ascending."""
    if most > 50_000_000:
        keys, number = np.unique(key, return_inverse=True)
        return number, keys
    there = np.zeros(most, bool)
    there[key] = True
    return (np.cumsum(there) - 1)[key], np.flatnonzero(there)


def _by_rank(labels: list[Any]) -> list[Any]:
    return sorted(labels) if all(isinstance(v, (int, float)) for v in labels) else labels


def _rank(labels: list[Any]) -> np.ndarray:
    """Return rank + 1 by code; the last entry, reached by code −1, is 0."""
    order = sorted(range(len(labels)), key=lambda i: labels[i]) if all(isinstance(v, (int, float)) for v in labels) else list(range(len(labels)))
    out = np.zeros(len(labels) + 1, np.int64)
    out[order] = np.arange(1, len(labels) + 1)
    return out


def _grid(shape: tuple[int, ...], places: tuple[np.ndarray, ...], slots: np.ndarray, chosen: np.ndarray, where: str) -> np.ndarray:
    """Put the slots of chosen cells into a grid."""
    if np.prod(shape, dtype=np.float64) > 2e9:
        raise UserError(f"{where}: the cells do not form a grid: {shape} places for {len(slots):,} cells")
    grid = np.full(shape, -1, np.int64)
    index = tuple(p[chosen] for p in places)
    grid[index] = slots[chosen]
    if (grid >= 0).sum() != chosen.sum():
        raise UserError(f"{where}: several cells have the same target, condition, example and trial")
    return grid
