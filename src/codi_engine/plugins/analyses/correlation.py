"""``correlation``: which features go together, over examples, all pairs, corrected over the whole family."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.core.runs.vectors import Codes, VectorPart, Vectors, dense_rows
from codi_engine.core.runs.work import StreamOptions
from codi_engine.kernels.cluster import average

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Partial, Work
    from codi_engine.kernels.correlation import Products

#: seconds between states that an interrupted analysis can go on from
_KEEP_EVERY = 60.0
#: multiplications up to which double precision takes no noticeable time
_CHEAP = 4e11


class CorrelationOptions(StreamOptions):
    """``site``, ``at``: which activations, as for ``pathways``. ``conditions``: each is correlated by itself (default: all of them).

    ``method``: Pearson, or Spearman (Pearson of average ranks); ``auto`` takes Spearman for sparse codes, whose skew makes Pearson's
    p-values too small. ``unit``: trials are averaged within examples where there are
    several examples. ``min_expected``: rows in which two features would both be active by chance; rarer pairs are not tested, for
    their r is far from normal. ``min_mean``, ``min_nonzero``: of a feature. ``min_coactive``: rows in which both are active, for a pair
    to be listed. ``min_r``: a further threshold on |r|. ``top``: pairs listed per condition.
    ``q``: level of the family of tests, after ``correction``. ``confidence``: of intervals. ``draw``: how many are drawn.
    """

    site: str | None = None
    at: dict[str, Any] = Field(default_factory=dict)
    conditions: list[str] | None = None
    method: Literal["auto", "pearson", "spearman"] = "auto"
    unit: Literal["auto", "example", "trial"] = "auto"
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni", "none"] = "bh"
    min_r: float = Field(default=0.0, ge=0.0, le=1.0)
    min_expected: float = Field(default=5.0, ge=0.0)
    min_mean: float | None = None
    min_nonzero: int = Field(default=0, ge=0)
    min_coactive: int = Field(default=0, ge=0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    top: int = Field(default=1000, ge=1)
    draw: int = Field(default=40, ge=2)


@dataclass
class Correlated:
    """Products of one condition."""

    condition: str
    products: Products


class Correlation(Analysis[CorrelationOptions]):
    """Correlations of all pairs of captured features: top pairs with interval, p and q, and a clustered heatmap.

    The unit of inference is the example; its trials are averaged first.
    """

    name = "correlation"
    Options = CorrelationOptions

    def check(self, facts: Foreseen) -> None:
        facts.need_capture(self.options.site, "resid_post@latent", only=True, exact=True)
        for name in self.options.conditions or ():
            facts.need_condition(name, "conditions", unedited=True)

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        run, options = runs[0], self.options
        vectors = Vectors(run, options.site, self.name, options.at, options.conditions or ())
        chosen, by_example = self._conditions(vectors), self._by_example(vectors)
        rows = len(vectors.arrangement.targets) * len(vectors.arrangement.examples) * (1 if by_example else vectors.arrangement.replicates)
        if rows < 3:
            raise UserError(f"{self.name}: needs at least three {'examples' if by_example else 'rows'} per condition; the run has {rows}")
        kind = np.float64 if float(rows) * vectors.width**2 * len(chosen) < _CHEAP else np.float32
        settings = {"analysis": self.name, "run": run.digest, "piece": work.piece, "options": options.model_dump(exclude={"memory", "threads"})}
        work.begin(settings)
        tables, shown = [], []
        precision = "double" if kind is np.float64 else "single"
        notes = [f"{self._method(vectors).capitalize()}, {rows:,} rows of {vectors.width:,} features of {vectors.name}, in {precision} precision"]
        self._reader = _Reader(vectors, chosen, by_example, work)
        for group in self._groups(vectors, chosen, kind, work):
            for correlated in self._products(vectors, group, by_example, kind, work):
                table, note = self._table(correlated, vectors)
                tables.append(table)
                notes.append(note)
                shown.append(_strongest(table, correlated, vectors, options.draw))
        import pandas as pd

        whole = pd.concat(tables, ignore_index=True)
        found = {"correlation": whole, "strongest": pd.concat(shown, ignore_index=True)}
        conditions = [vectors.arrangement.conditions[c] for c in chosen]
        return AnalysisResult(found, summary="\n".join([*notes, *self._remarks(vectors, by_example, rows)]), facts={"conditions": conditions})

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses.correlation_figures import heatmap

        table, conditions = tables["strongest"], about["facts"]["conditions"]
        figures = {}
        for number, condition in enumerate(conditions):
            part = table[table["condition"] == condition]
            if len(part):
                labels = list(dict.fromkeys(part["a"]))
                r = part["r"].to_numpy(float).reshape(len(labels), len(labels))
                figures[f"heatmap_{number + 1}" if len(conditions) > 1 else "heatmap"] = heatmap(r, labels, condition)
        return figures

    # --------------------------------------------------------------------------------------------- design

    def _conditions(self, vectors: Vectors) -> list[int]:
        known = vectors.arrangement.conditions
        for name in self.options.conditions or []:
            if name not in known:
                raise UserError(f"{self.name}: condition '{name}': {nearest(name, known)}")
        return [known.index(c) for c in self.options.conditions or known]

    def _by_example(self, vectors: Vectors) -> bool:
        several = len(vectors.arrangement.examples) > 1
        if self.options.unit == "example" and not several:
            raise UserError(f"{self.name}: unit=example needs several examples; the run has one")
        return several if self.options.unit == "auto" else self.options.unit == "example"

    def _groups(self, vectors: Vectors, chosen: list[int], kind: type[np.floating[Any]], work: Work) -> list[list[int]]:
        """Divide conditions into groups whose products fit into memory together; each group reads the run once."""
        from codi_engine.kernels.correlation import panel_rows

        each = vectors.width**2 * 8 * (2 if self.options.min_coactive else 1) + panel_rows(vectors.width) * vectors.width * np.dtype(kind).itemsize * 2
        room = int(0.6 * work.memory) // each
        if room < 1:
            need = each / 0.6 / 1e9
            raise UserError(
                f"{self.name}: {vectors.width:,} × {vectors.width:,} correlations need memory={need:.1f} (GB); raise it, or choose features with at"
            )
        return [chosen[i : i + room] for i in range(0, len(chosen), room)]

    def _method(self, vectors: Vectors) -> str:
        return self.options.method if self.options.method != "auto" else ("spearman" if vectors.sparse else "pearson")

    # ------------------------------------------------------------------------------------------- products

    def _products(self, vectors: Vectors, group: list[int], by_example: bool, kind: type[np.floating[Any]], work: Work) -> list[Correlated]:
        """Read the run once and form the products of a group of conditions."""
        from codi_engine.kernels.correlation import Products

        made = [Products(vectors.width, kind, bool(self.options.min_coactive), work.threads) for _ in group]
        if self._method(vectors) == "spearman":
            self._ranked(vectors, group, by_example, made, work)
        else:
            self._streamed(group, made, work)
        return [Correlated(vectors.arrangement.conditions[c], p) for c, p in zip(group, made, strict=True)]

    def _streamed(self, group: list[int], made: list[Products], work: Work) -> None:
        label = f"correlation-{group[0]}"
        kept = work.kept(label)
        begin = int(kept["next"][0]) if kept is not None else 0
        if kept is not None:
            for i, products in enumerate(made):
                products.restore({k[len(f"{i}-") :]: v for k, v in kept.items() if k.startswith(f"{i}-")})
        said = time.monotonic()
        for number, blocks in self._reader.blocks(group, begin):
            for rows, products in zip(blocks, made, strict=True):
                products.add(rows)
            if time.monotonic() - said > _KEEP_EVERY:
                work.keep(label, {"next": np.array([number + 1]), **{f"{i}-{k}": v for i, p in enumerate(made) for k, v in p.state().items()}})
                said = time.monotonic()

    def _ranked(self, vectors: Vectors, group: list[int], by_example: bool, made: list[Products], work: Work) -> None:
        """Ranks need whole columns: rows go to a scratch file when they do not fit into memory."""
        from codi_engine.kernels.correlation import centred_ranks

        a = vectors.arrangement
        rows = len(a.targets) * len(a.examples) * (1 if by_example else a.replicates)
        with _Scratch(work, len(group) * rows, vectors.width) as store:
            at = np.arange(len(group)) * rows
            for _, blocks in self._reader.blocks(group):
                for i, block in enumerate(blocks):
                    store[at[i] : at[i] + len(block)] = block
                    at[i] += len(block)
            strip = max(int(work.memory // 4 // max(rows * 16, 1)), 1)
            for i, products in enumerate(made):
                mine = store[i * rows : at[i]]
                raw_nonzero, mean = np.zeros(vectors.width, np.int64), np.zeros(vectors.width)
                for c in range(0, vectors.width, strip):
                    columns = np.ascontiguousarray(mine[:, c : c + strip])
                    raw_nonzero[c : c + strip], mean[c : c + strip] = (columns != 0).sum(0), columns.mean(0, dtype=np.float64)
                    ranks = np.empty(columns.shape)
                    centred_ranks(columns, ranks)
                    mine[:, c : c + strip] = ranks
                for r in range(0, len(mine), 4096):
                    products.add(np.asarray(mine[r : r + 4096]))
                products.finish()
                products.nonzero = raw_nonzero
                products.shift, products.sums = mean - products.sums / max(products.n, 1), products.sums

    # --------------------------------------------------------------------------------------------- output

    def _table(self, correlated: Correlated, vectors: Vectors) -> tuple[pd.DataFrame, str]:
        import pandas as pd

        from codi_engine.kernels.correlation import interval, pairs
        from codi_engine.kernels.multiple import Family

        options, products = self.options, correlated.products
        mean = products.mean
        allowed = products.nonzero >= options.min_nonzero
        if options.min_mean is not None:
            allowed &= mean >= options.min_mean
        found, tested = pairs(products, allowed, options.q, options.min_coactive, options.min_expected)
        family = Family(options.q, options.correction)
        family.add(found.p, more=tested - len(found.p))
        keep = found.p <= family.cutoff()
        q = family.adjust(found.p[keep])
        a, b, r, p, both = (v[keep] for v in (found.a, found.b, found.r, found.p, found.coactive))
        significant = (q <= options.q) & (np.abs(r) >= options.min_r)
        count = int(significant.sum())
        order = np.flatnonzero(significant)
        order = order[np.lexsort((b[order], a[order], -np.abs(r[order])))][: options.top]
        labels = np.array(vectors.labels, object)
        low, high = interval(r[order], products.n, options.confidence)
        frame = pd.DataFrame(
            {
                "condition": correlated.condition, "a": labels[b[order]], "b": labels[a[order]], "r": r[order], "ci_low": low, "ci_high": high,
                "p": p[order], "q": q[order], "n": products.n, "nonzero_a": products.nonzero[b[order]], "nonzero_b": products.nonzero[a[order]],
            }
        )  # fmt: skip
        if options.min_coactive:
            frame["coactive"] = both[order]
        unusable = int((~products.usable & (products.missing == 0)).sum())
        note = f"  {correlated.condition}: {count:,} of {tested:,} pairs correlate (q ≤ {options.q:g}, {options.correction.upper()}"
        note += f", |r| ≥ {options.min_r:g})" if options.min_r else ")"
        if count > options.top:
            note += f"; the strongest {options.top:,} are listed"
        if unusable:
            note += f"; {unusable:,} features are constant"
        if products.missing.any():
            note += f"; {int((products.missing > 0).sum()):,} features have {int(products.missing.sum()):,} NaN and are left out"
        if len(frame):
            note += f"\n    strongest: {frame['a'].iloc[0]} – {frame['b'].iloc[0]}, r = {frame['r'].iloc[0]:+.3f}"
        return frame, note

    def _remarks(self, vectors: Vectors, by_example: bool, rows: int) -> list[str]:
        from codi_engine.kernels.correlation import critical_r

        a = vectors.arrangement
        out = [f"with {rows:,} rows |r| must exceed {critical_r(rows, 0.05):.2g} to be told from none, before any correction (p < .05)"]
        if by_example:
            out.append("unit: the example" + (f"; its {a.replicates:,} trials are averaged" if a.replicates > 1 else ""))
        elif len(a.examples) > 1:
            out.append("trials are treated as independent although they share examples: p-values are too small; use unit=example")
        else:
            out.append("one prompt per condition: the trials are the only replication, so this speaks about sampling from these prompts and nothing wider")
        if len(a.targets) > 1:
            out.append(f"rows of {len(a.targets):,} targets are taken together; differences between targets show as correlation")
        return out


class _Reader:
    """Reads the rows that are correlated, part by part.

    Where work is spread, the workers read, and form the means of trials, which are small; sums over all rows have one order, and are this process'.
    """

    def __init__(self, vectors: Vectors, chosen: Sequence[int], by_example: bool, work: Work) -> None:
        self._vectors, self._chosen, self._by_example, self._work = vectors, list(chosen), by_example, work
        self._parts = vectors.parts(work.piece)
        self._spreads = work.spreads and by_example and vectors.arrangement.replicates > 1
        self._averaged = False

    def blocks(self, group: Sequence[int], begin: int = 0) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield (number of the part, for each condition of a group its rows × features) in order, those before ``begin`` left out."""
        if not self._spreads:
            for number, part, data in self._work.read_ahead("correlation", self._parts, self._read, begin):
                yield number, _rows(self._vectors, part, data, group, self._by_example)
            return
        stream = (self._work.partial("means", part) for part in self._parts) if self._averaged else self._means()
        for number, means in enumerate(stream):
            if number >= begin:
                yield number, [means[str(condition)] for condition in group]
        self._averaged = True

    def _means(self) -> Iterator[Partial]:
        def compute(part: VectorPart, data: tuple[Any, Any]) -> Partial:
            return {str(c): rows for c, rows in zip(self._chosen, _rows(self._vectors, part, data, self._chosen, True), strict=True)}

        return self._work.stream("means", self._parts, self._read, compute)

    def _read(self, part: VectorPart, used: Any) -> tuple[Any, Any]:
        return _read(self._vectors, part, used)


def _read(vectors: Vectors, part: VectorPart, used: Any) -> tuple[Any, Any]:
    common = vectors.read_common(part.begin, part.end) if vectors.arrangement.shared and part.first == 0 else None
    return vectors.read_own(part, None if used is None else used[0]), common


def _rows(vectors: Vectors, part: VectorPart, data: tuple[Any, Any], group: Sequence[int], by_example: bool) -> list[np.ndarray]:
    """Return for each condition of a group the rows of a part that exist, rows × features."""
    a = vectors.arrangement
    own, common = (dense_rows(d, vectors.stored) if isinstance(d, Codes) else d for d in data)
    out = []
    for condition in group:
        if condition in a.own:
            place = a.own.index(condition)
            values, slots = own[:, place], a.slots[part.first : part.last, place, part.begin : part.end]
        elif common is not None:
            place = a.shared.index(condition)
            values, slots = common[place][None], a.common[place][None, part.begin : part.end]
        else:
            out.append(np.zeros((0, vectors.width)))
            continue
        if vectors.columns is not None:
            values = values[..., vectors.columns]
        there = slots >= 0
        if by_example:
            mean = average(np.ascontiguousarray(values)).reshape(-1, vectors.width)
            out.append(mean[there.any(-1).reshape(-1)])
        else:
            out.append(np.ascontiguousarray(values.reshape(-1, vectors.width)[there.reshape(-1)]))
    return out


class _Scratch:
    """Rows × width of double precision, in memory or in a file that is removed afterwards."""

    def __init__(self, work: Work, rows: int, width: int) -> None:
        self._work, self._shape = work, (rows, width)
        self._path = None if work.folder is None or rows * width * 8 <= work.memory // 3 else work.folder / "rows.f64"

    def __enter__(self) -> np.ndarray:
        if self._path is None:
            return np.empty(self._shape)
        return np.memmap(self._path, np.float64, "w+", shape=self._shape)

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _strongest(table: pd.DataFrame, correlated: Correlated, vectors: Vectors, most: int) -> pd.DataFrame:
    """Return all correlations (a, b, r) among the features of the strongest pairs; no rows where nothing correlates."""
    import pandas as pd

    names = list(dict.fromkeys(n for pair in zip(table["a"], table["b"], strict=True) for n in pair))[:most]
    if not names:
        return pd.DataFrame({"condition": pd.Series(dtype=object), "a": pd.Series(dtype=object), "b": pd.Series(dtype=object), "r": pd.Series(dtype=float)})
    where = {n: i for i, n in enumerate(vectors.labels)}
    r = correlated.products.among(np.array([where[n] for n in names]))
    labels = np.array(names, object)
    return pd.DataFrame({"condition": correlated.condition, "a": labels.repeat(len(names)), "b": np.tile(labels, len(names)), "r": r.ravel()})
