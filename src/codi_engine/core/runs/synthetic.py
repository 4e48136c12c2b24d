"""Runs of any size with planted pathways, words and correlations, so that recall and false discoveries can be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.progress import Progress
from codi_engine.store.errors import IdentityMismatch
from codi_engine.store.layout import RESULTS, ArraySpec
from codi_engine.store.sparse import sparse_specs, to_codes
from codi_engine.store.unitfiles import Content

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.store.writer import RunWriter

SITE = "sae"
_SHARD_BYTES = 32 << 20
_VOCABULARY = 20_000
_COMMON = [
    *("the", "a", "of", "to", "and", "in", "is", "that", "it", "for", "bet", "stop", "slot", "machine", "win", "lose", "money", "game"),
    *("play", "again", "risk", "safe", "think", "balance", "round", "final", "choose", "amount", "maybe"),
]


@dataclass(frozen=True)
class Synthetic:
    """What is made. All randomness is keyed by ``seed`` and the cell, so a run that was interrupted goes on to the same bytes.

    Attributes
    ----------
    targets, conditions, examples, trials, features: the size; one condition is ``baseline``
    sparse: SAE codes stored as such; False stores every value
    gaussian: residual-stream-like values instead of SAE-like codes (dense only)
    density: mean share of features that fire (rates are log-normal)
    icc: intra-class correlation of the trials of an example within a condition
    effect: size of planted effects, in standard deviations of a feature's drive
    pathways: planted features per target and patched condition
    groups, rho: groups of three correlated features, and their correlation before the threshold
    words: words per text; 0 for none
    layers: features are spread over so many layers
    """

    targets: int = 40
    conditions: int = 3
    examples: int = 1
    trials: int = 30
    features: int = 400
    sparse: bool = True
    gaussian: bool = False
    density: float = 0.02
    icc: float = 0.0
    effect: float = 2.0
    pathways: int = 3
    groups: int = 10
    rho: float = 0.8
    words: int = 60
    layers: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("targets", "examples", "trials", "layers"):
            if getattr(self, name) < 1:
                raise UserError(f"synth: {name} must be at least 1; got {getattr(self, name)}")
        if self.conditions < 2 or self.features < 3:
            raise UserError("synth: needs at least 2 conditions and 3 features")
        for name in ("density", "icc", "rho"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"synth: {name} must be in [0, 1); got {getattr(self, name)}")
        if self.targets > self.features:
            raise UserError(f"synth: {self.targets} targets of {self.features} features: a target is one of the features")
        if self.gaussian and self.sparse:
            raise UserError("synth: gaussian values are dense; give --dense")

    @property
    def cells(self) -> int:
        """Return the number of cells."""
        return self.targets * self.cells_per_target

    @property
    def cells_per_target(self) -> int:
        return self.conditions * self.examples * self.trials

    @property
    def unit_cells(self) -> int:
        """Return the cells of a unit: whole targets where that gives shards of about 32 MB."""
        rows = max(_SHARD_BYTES // (4 * self.features), 1)
        whole = rows // self.cells_per_target * self.cells_per_target
        return min(whole or rows, self.cells)

    # ---------------------------------------------------------------------------------------- the plan

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, 0x5EED], counter=[0, 0, *(*key, 0, 0)[:2]]))

    @cached_property
    def feature_names(self) -> list[str]:
        """``L<layer>-<number>``, layers ascending."""
        return [f"L{1 + i * self.layers // self.features}-{i}" for i in range(self.features)]

    @cached_property
    def target_features(self) -> np.ndarray:
        """Which features are targets, ascending."""
        chosen: np.ndarray = np.sort(self._rng(1).choice(self.features, self.targets, replace=False))
        return chosen

    @cached_property
    def condition_names(self) -> list[str]:
        return ["baseline", *(f"patch_{i}" for i in range(1, self.conditions))]

    @cached_property
    def rates(self) -> np.ndarray:
        """How often each feature fires."""
        raw = np.exp(self._rng(2).normal(0.0, 1.5, self.features))
        rates: np.ndarray = np.clip(raw * self.density / raw.mean(), 1e-6, 0.9)
        return rates

    @cached_property
    def thresholds(self) -> np.ndarray:
        from scipy import special

        limits: np.ndarray = special.ndtri(1.0 - self.rates).astype(np.float32)
        return limits

    @cached_property
    def group_of(self) -> np.ndarray:
        """Group of each feature; −1 for most."""
        out = np.full(self.features, -1)
        count = min(self.groups, self.features // 6)
        often = np.argsort(-self.rates)[: max(6 * count, 3 * count)]
        for group, members in enumerate(self._rng(3).permutation(often)[: 3 * count].reshape(count, 3)):
            out[members] = group
        return out

    @cached_property
    def planted(self) -> pd.DataFrame:
        """Planted pathways: target, feature, condition; features lie in later layers and are other targets where they can be."""
        import pandas as pd

        rng, rows = self._rng(4), []
        layer = np.arange(self.features) * self.layers // self.features
        for target in self.target_features:
            later = np.flatnonzero(layer > layer[target])
            also = np.intersect1d(later, self.target_features)
            for condition in range(1, self.conditions):
                count = min(self.pathways, len(later))
                chosen = rng.choice(later, count, replace=False)
                if len(also) and count:
                    chosen[0] = rng.choice(also)
                rows += [(target, f, condition) for f in np.unique(chosen)]
        return pd.DataFrame(rows, columns=["target", "feature", "condition"], dtype=np.int64)

    @cached_property
    def shifts(self) -> dict[tuple[int, int], np.ndarray]:
        """(target number, condition) → features whose drive is raised."""
        found: dict[tuple[int, int], list[int]] = {}
        number = {f: i for i, f in enumerate(self.target_features.tolist())}
        for target, feature, condition in self.planted.to_numpy().tolist():
            found.setdefault((number[target], condition), []).append(feature)
        return {key: np.array(features) for key, features in found.items()}

    # -------------------------------------------------------------------------------------------- values

    def places(self, begin: int, end: int) -> tuple[np.ndarray, ...]:
        """Return target, condition, example and trial of cells."""
        return np.unravel_index(np.arange(begin, end), (self.targets, self.conditions, self.examples, self.trials))

    def values(self, begin: int, end: int) -> np.ndarray:
        """Return the vectors of cells, cells × features, float32."""
        target, condition, example, _ = self.places(begin, end)
        out = np.empty((end - begin, self.features), np.float32)
        noise = np.float32(np.sqrt(1.0 - self.icc))
        starts = np.flatnonzero(np.r_[True, (np.diff(target) != 0) | (np.diff(condition) != 0) | (np.diff(example) != 0)])
        for a, b in zip(starts, [*starts[1:], end - begin], strict=True):
            t, c, e = int(target[a]), int(condition[a]), int(example[a])
            block = out[a:b]
            first = (begin + a) % self.trials
            group = (t * self.conditions + c) * self.examples + e
            rng = self._rng(5, group)
            if first:  # a unit that begins within an example: the same numbers as if it began before
                whole = np.empty((first + b - a, self.features), np.float32)
                rng.standard_normal(out=whole, dtype=np.float32)
                block[:] = whole[first:]
            else:
                rng.standard_normal(out=block, dtype=np.float32)
            self._shape(block, group, int(first), noise)
            planted = self.shifts.get((t, c))
            if planted is not None:
                block[:, planted] += np.float32(self.effect)
        if self.gaussian:
            scale = np.exp(self._rng(7).normal(0.0, 0.4, self.features)).astype(np.float32)
            return out * scale + self._rng(8).normal(0.0, 0.5, self.features).astype(np.float32)
        out -= self.thresholds
        np.maximum(out, 0.0, out=out)
        out[out > 0] += np.float32(0.3)
        return out

    def _shape(self, block: np.ndarray, group: int, first: int, noise: np.float32) -> None:
        """Turn independent noise into noise that is correlated within groups of features and within the example."""
        if (self.group_of >= 0).any():
            members = np.flatnonzero(self.group_of >= 0)
            common = self._rng(6, group).standard_normal((first + len(block), self.group_of.max() + 1), dtype=np.float32)[first:]
            block[:, members] = np.float32(np.sqrt(1 - self.rho)) * block[:, members] + np.float32(np.sqrt(self.rho)) * common[:, self.group_of[members]]
        if self.icc:
            block *= noise
            block += np.float32(np.sqrt(self.icc)) * self._rng(9, group).standard_normal(self.features, dtype=np.float32)

    # --------------------------------------------------------------------------------------------- texts

    @cached_property
    def vocabulary(self) -> list[str]:
        rng = self._rng(10)
        letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
        made = [letters[rng.integers(0, 26, rng.integers(3, 11))].tobytes().decode() for _ in range(_VOCABULARY)]
        return list(dict.fromkeys([*_COMMON, *made]))

    @cached_property
    def planted_words(self) -> pd.DataFrame:
        """Planted words: target, condition, word (three for each patched condition)."""
        import pandas as pd

        rng = self._rng(11)
        rows = [(t, c, int(w)) for t in range(self.targets) for c in range(1, self.conditions) for w in rng.choice(np.arange(30, 3000), 3, replace=False)]
        return pd.DataFrame(rows, columns=["target", "condition", "word"], dtype=np.int64)

    def texts(self, begin: int, end: int) -> list[str]:
        """Return the texts of cells: Zipfian words, sums of money, numbers; planted words take 2 % of the places each."""
        target, condition, _, _ = self.places(begin, end)
        words, vocabulary = self.words, np.array(self.vocabulary, object)
        boosted: dict[tuple[int, int], list[int]] = {}
        for t, c, word in self.planted_words.itertuples(index=False):
            boosted.setdefault((int(t), int(c)), []).append(int(word))
        out = []
        for i, cell in enumerate(range(begin, end)):
            rng = self._rng(12, cell)
            ids = np.minimum(np.exp(rng.random(words) * np.log(len(vocabulary))).astype(np.int64), len(vocabulary)) - 1
            mine = boosted.get((int(target[i]), int(condition[i])))
            if mine is not None:
                chance = rng.random(words)
                for k, word in enumerate(mine):
                    ids[(chance >= 0.02 * k) & (chance < 0.02 * (k + 1))] = word
            tokens = vocabulary[ids]
            money = rng.integers(0, words, max(words // 20, 1))
            tokens[money] = [f"${v}" for v in rng.integers(1, 200, len(money))]
            out.append(" ".join(tokens) + ".")
        return out


def write_synthetic(what: Synthetic, output: str | Path, progress: Progress | None = None) -> Path:
    """Write a run, or go on with it; the planted truth lies in ``results/synth``.

    Raises
    ------
    UserError: the directory holds something else
    """
    from codi_engine.store.writer import RunWriter

    path, progress = Path(output), progress or Progress()
    settings = asdict(what)
    units = -(-what.cells // what.unit_cells)
    import yaml

    text = yaml.safe_dump({"name": path.name, "synthetic": settings}, sort_keys=False)
    try:
        opened = RunWriter.open(path, identity={"synthetic": settings}, unit_cells=what.unit_cells, experiment=text, provenance={"synthetic": settings})
    except IdentityMismatch as mismatch:
        raise DifferentRun(f"{path}: holds another run ({'; '.join(mismatch.differences[:3])}); choose another directory") from None
    with opened as writer:
        if not writer.plans:
            writer.add_plan({"cells": what.cells}, units, _specs(what), _labels(what))
        progress.start("synth", what.cells, "cells")
        for unit in range(units):
            if unit not in writer.committed:
                writer.commit(unit, "sweep", _unit(what, unit))
            progress.advance(min(what.unit_cells, what.cells - unit * what.unit_cells))
        progress.finish()
    _write_truth(what, path)
    return path


def resynthesize(settings: Mapping[str, Any]) -> Callable[[RunWriter, int], Content]:
    """Return what makes units of a synthetic run once more."""
    what = Synthetic(**settings)
    return lambda _, unit: _unit(what, unit)


def _unit(what: Synthetic, unit: int) -> Content:
    begin, end = unit * what.unit_cells, min((unit + 1) * what.unit_cells, what.cells)
    return Content(dict(_arrays(what, unit, begin, end)), _texts(what, begin, end))


def _specs(what: Synthetic) -> list[ArraySpec]:
    axes = [ArraySpec(f"cells/{a}", ("cell",), (), "int32", -1, attrs={"labels": []}) for a in ("example", "condition", "variant", "target", "trial")]
    scalars = [ArraySpec("cells/status", ("cell",), (), "uint8", 0), ArraySpec("cells/answer", ("cell",), (), "float64", float("nan"))]
    name, coords = f"activations/{SITE}", {"coords": {"feature": what.feature_names}}
    if what.sparse:
        return [*axes, *scalars, *sparse_specs(name, what.features, coords)]
    return [*axes, *scalars, ArraySpec(f"{name}/value", ("cell", "feature"), (what.features,), "float32", float("nan"), attrs=coords)]


def _labels(what: Synthetic) -> dict[str, list[Any]]:
    return {
        "cells/example": [f"example-{i}" for i in range(what.examples)],
        "cells/condition": what.condition_names,
        "cells/variant": ["main"],
        "cells/target": [what.feature_names[f] for f in what.target_features],
        "cells/trial": list(range(what.trials)),
    }


def _arrays(what: Synthetic, unit: int, begin: int, end: int) -> Iterator[tuple[str, np.ndarray]]:
    target, condition, example, trial = what.places(begin, end)
    for name, codes in (("target", target), ("condition", condition), ("example", example), ("trial", trial), ("variant", 0 * trial)):
        yield f"cells/{name}", codes.astype(np.int32)
    yield "cells/status", np.ones(end - begin, np.uint8)
    yield "cells/answer", np.full(end - begin, np.nan)
    values = what.values(begin, end)
    if what.sparse:
        yield from to_codes(f"activations/{SITE}", values, unit, what.unit_cells).items()
    else:
        yield f"activations/{SITE}/value", values


def _texts(what: Synthetic, begin: int, end: int) -> dict[str, list[Any]] | None:
    if not what.words:
        return None
    return {"key": [f"{c}" for c in range(begin, end)], "text": what.texts(begin, end)}


def _write_truth(what: Synthetic, path: Path) -> None:
    """Write what was planted, in names."""
    import pandas as pd

    folder = path / RESULTS / "synth"
    folder.mkdir(parents=True, exist_ok=True)
    names, conditions = np.array(what.feature_names, object), np.array(what.condition_names, object)
    planted = what.planted
    frame = pd.DataFrame({"target": names[planted["target"]], "feature": names[planted["feature"]], "condition": conditions[planted["condition"]]})
    frame.to_parquet(folder / "pathways.parquet")
    words = what.planted_words
    vocabulary = np.array(what.vocabulary, object)
    targets = names[what.target_features[words["target"]]]
    pd.DataFrame({"target": targets, "condition": conditions[words["condition"]], "word": vocabulary[words["word"]]}).to_parquet(folder / "words.parquet")
    pairs = [(names[a], names[b]) for a in range(what.features) for b in range(a) if what.group_of[a] >= 0 and what.group_of[a] == what.group_of[b]]
    pd.DataFrame(pairs, columns=["a", "b"]).to_parquet(folder / "correlations.parquet")
