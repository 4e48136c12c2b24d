"""``pathways``: which features change downstream when a feature is changed, with one correction over the whole family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.core.runs.vectors import Vectors
from codi_engine.core.runs.work import StreamOptions
from codi_engine.plugins.analyses.comparing import PAIRED, Comparison, Design

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.arrange import Arrangement
    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Partial, Work
    from codi_engine.kernels.multiple import Family
    from codi_engine.kernels.ttest import Test

_SPEAKS_OF_TRIALS = "one prompt per condition: the trials are the only replication, so this speaks about sampling from these prompts and nothing wider"


class PathwaysOptions(StreamOptions):
    """``site``: which activations (default: the only ones). ``at``: values of their dimensions, such as ``{step: 3}``.

    ``pairs``: conditions to compare, ``[[a, b]]`` for a − b (default: each against ``baseline``, else all pairs).
    ``test``: ``auto`` is paired where the same examples are in both conditions, else Welch; or ``welch``, ``pooled``, ``paired``,
    ``mann_whitney``, ``wilcoxon``, ``permutation``. ``unit``: what counts as one observation; trials are averaged within examples.
    ``direction``: features in later layers than the target's (``downstream``), in earlier ones (``upstream``) or ``all``.
    ``correction`` runs over all targets, features and pairs together; ``min_effect`` and ``min_g`` are further thresholds.
    ``q``: level of the tests after correction. ``confidence``: of intervals. ``permutations`` and ``seed``: of the permutation test.
    ``chains``: how many are listed. ``draw``: how many are drawn.
    """

    site: str | None = None
    at: dict[str, Any] = Field(default_factory=dict)
    pairs: list[list[str]] | None = None
    test: Literal["auto", "welch", "pooled", "paired", "mann_whitney", "wilcoxon", "permutation"] = "auto"
    unit: Literal["auto", "example", "trial"] = "auto"
    direction: Literal["downstream", "upstream", "all"] = "downstream"
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni", "none"] = "bh"
    min_effect: float = Field(default=0.0, ge=0.0)
    min_g: float = Field(default=0.0, ge=0.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    permutations: int = Field(default=9999, ge=99)
    seed: int = Field(default=0, ge=0)
    chains: int = Field(default=20, ge=0)
    draw: int = Field(default=60, ge=1)


@dataclass
class Found:
    """What the tests gave: the significant ones, and counts per pair (tested, constant, too few values)."""

    table: pd.DataFrame
    counts: np.ndarray
    nan: float
    family: Family


class Pathways(Analysis[PathwaysOptions]):
    """Features → features: what changes when a target feature is changed, FDR over the whole family, and the chains they form.

    The unit of inference is the example; its trials are averaged first. Where there is one prompt per condition the trials are
    the only replication, and the summary says so.
    """

    name = "pathways"
    Options = PathwaysOptions

    def check(self, facts: Foreseen) -> None:
        facts.need_capture(self.options.site, "latent_out", only=True, exact=True)
        facts.need_pairs(self.options.pairs)

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import pathway_graph

        run, options = runs[0], self.options
        vectors = Vectors(run, options.site, self.name, options.at, {name for pair in options.pairs or () for name in pair})
        design = self._design(vectors)
        work.begin({"analysis": self.name, "run": run.digest, "options": options.model_dump(exclude={"memory", "threads", "chains", "draw"})})
        found = self._found(vectors, design, work)
        arrangement = vectors.arrangement
        graph = pathway_graph.graph(found.table, options.direction)
        chains = pathway_graph.chains(graph, options.chains)
        tables = {"pathways": found.table, "chains": chains, "pairs": _pair_table(found, arrangement, design)}
        return AnalysisResult(tables, summary=self._summary(found, chains, vectors, design), files=pathway_graph.files(graph))

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import pathway_figures, pathway_graph

        table = tables["pathways"]
        return pathway_figures.draw(table, pathway_graph.graph(table, self.options.direction), self.options.draw)

    # --------------------------------------------------------------------------------------------- design

    def _design(self, vectors: Vectors) -> Design:
        options, arrangement = self.options, vectors.arrangement
        pairs = np.array(arrangement.pairs(options.pairs, self.name), np.int64).reshape(-1, 2)
        examples = len(arrangement.examples)
        by_example = options.unit == "example" or (options.unit == "auto" and examples > 1)
        same = examples > 1 and by_example and all(_same_examples(arrangement, a, b) for a, b in pairs)
        test = options.test if options.test != "auto" else ("paired" if same else "welch")
        if test in PAIRED and not same:
            what = "the conditions have different examples" if examples > 1 else "there is one example"
            raise UserError(f"{self.name}: test {test} needs the same examples in both conditions, but {what}; use test=welch")
        units = examples if by_example else examples * arrangement.replicates
        if units < 2:
            raise UserError(
                f"{self.name}: needs at least two {'examples' if by_example else 'trials'} per condition; "
                f"the run has {examples} examples with {arrangement.replicates} trials"
            )
        return Design(pairs, test, by_example, same, options.q, self._allowed(vectors), options.permutations, options.seed)

    def _allowed(self, vectors: Vectors) -> np.ndarray | None:
        """Return targets × features: tests in the wanted direction; None for all."""
        if self.options.direction == "all":
            return None
        layers = [vectors.arrangement.layer(t) for t in range(len(vectors.arrangement.targets))]
        if all(v is None for v in layers) or (vectors.layers < 0).all():
            return None
        own = np.array([-1 if v is None else v for v in layers])[:, None]
        beyond = vectors.layers[None] > own if self.options.direction == "downstream" else vectors.layers[None] < own
        allowed: np.ndarray = beyond & (own >= 0) & (vectors.layers[None] >= 0)
        if not allowed.any():
            raise UserError(f"{self.name}: no feature lies {self.options.direction} of any target; use direction=all")
        return allowed

    # ---------------------------------------------------------------------------------------------- tests

    def _found(self, vectors: Vectors, design: Design, work: Work) -> Found:
        """Test everything; count the family first, then keep what can be significant."""
        from codi_engine.kernels.multiple import Family

        family = Family(self.options.q, self.options.correction)
        comparison = Comparison(vectors, design, work)
        counts, nan = np.zeros((len(design.pairs), 3), np.int64), 0.0
        for partial in comparison.results():
            tested = int(partial["counts"][:, :, 0].sum())
            family.add(partial["p"], more=tested - len(partial["p"]))
            counts += partial["counts"].sum(0)
            nan += float(partial["nan"][0])
        cutoff = family.cutoff()
        kept = [_below(partial, cutoff) for partial in comparison.results()]
        columns = {name: np.concatenate([k[name] for k in kept]) for name in kept[0]}
        return Found(self._table(columns, family, vectors, design), counts, nan, family)

    def _table(self, columns: dict[str, np.ndarray], family: Family, vectors: Vectors, design: Design) -> pd.DataFrame:
        import pandas as pd

        from codi_engine.kernels.ttest import hedges_g

        q = family.adjust(columns["p"])
        kind: Test = "paired" if design.test in PAIRED or (design.test == "permutation" and design.paired) else "welch"
        g, low, high = hedges_g(columns["effect"], columns["sd"], columns["n_a"], columns["n_b"], kind, self.options.confidence)
        strong = np.abs(np.nan_to_num(g, nan=np.inf)) >= self.options.min_g
        keep: np.ndarray = (q <= self.options.q) & (np.abs(columns["effect"]) >= self.options.min_effect) & strong
        c = {name: v[keep] for name, v in columns.items()}
        arrangement, labels, layers = vectors.arrangement, np.array(vectors.labels, object), vectors.layers
        targets = [arrangement.name(t) for t in range(len(arrangement.targets))]
        own = [arrangement.layer(t) for t in range(len(arrangement.targets))]
        names = np.array(arrangement.conditions, object)
        feature = c["feature"].astype(np.int64)
        frame = pd.DataFrame(
            {
                "target": [targets[t] for t in c["target"]],
                "feature": labels[feature],
                "condition": names[design.pairs[c["pair"], 0]],
                "against": names[design.pairs[c["pair"], 1]],
                "effect": c["effect"],
                "se": c["se"],
                "hedges_g": g[keep],
                "g_low": low[keep],
                "g_high": high[keep],
                "t": c["t"],
                "df": c["df"],
                "p": c["p"],
                "q": q[keep],
                "n": c["n_a"].astype(np.int64),
                "n_against": c["n_b"].astype(np.int64),
                "target_layer": pd.array([own[t] for t in c["target"]], dtype="Int64"),
                "feature_layer": pd.array([None if layers[f] < 0 else int(layers[f]) for f in feature], dtype="Int64"),
            }
        )
        return frame.sort_values(["p", "target", "feature", "condition", "against"], kind="stable").reset_index(drop=True)

    # -------------------------------------------------------------------------------------------- summary

    def _summary(self, found: Found, chains: pd.DataFrame, vectors: Vectors, design: Design) -> str:
        arrangement, options, family = vectors.arrangement, self.options, found.family
        tested, constant, few = (int(v) for v in found.counts.sum(0))
        names = [f"{arrangement.conditions[a]} − {arrangement.conditions[b]}" for a, b in design.pairs]
        lines = [f"{len(found.table):,} of {tested:,} pathways are significant ({_rule(options, family)})"]
        examples, trials = len(arrangement.examples), arrangement.replicates
        unit = (
            f"{examples:,} examples" + (f", their {trials:,} trials averaged" if trials > 1 else "") if design.by_example else f"{examples * trials:,} trials"
        )
        pairs = f"{len(names)} {'pair' if len(names) == 1 else 'pairs'}"
        lines.append(f"{len(arrangement.targets):,} targets × {vectors.width:,} features of {vectors.name} × {pairs}; {design.test} tests on {unit}")
        if examples == 1:
            lines.append(_SPEAKS_OF_TRIALS)
        elif not design.by_example:
            lines.append("trials are treated as independent although they share examples: p-values are too small; use unit=example")
        if arrangement.shared:
            shared = ", ".join(arrangement.conditions[c] for c in arrangement.shared)
            lines.append(f"{shared}: one sample, shared by all targets; its sampling error is common to them and their tests are dependent")
        if self._allowed(vectors) is None and options.direction != "all":
            lines.append("no layers are known of targets or features: every feature is tested")
        for _, row in found.table.head(3).iterrows():
            lines.append(f"  {row['target']} → {row['feature']}: {row['effect']:+.3g} (g {row['hedges_g']:+.2f}), q = {row['q']:.2g}, {row['condition']}")
        if len(chains):
            lines.append(f"longest chain: {chains['chain'].iloc[0]} (weakest |g| {chains['weakest_g'].iloc[0]:.2f})")
        notes = []
        if constant:
            notes.append(f"{constant:,} tests without any spread (p = 1, not in the family)")
        if few:
            notes.append(f"{few:,} with fewer than two values")
        if found.nan:
            notes.append(f"{int(found.nan):,} values are NaN and were left out")
        if notes:
            lines.append("; ".join(notes))
        lines.append(_power(design, arrangement, family))
        return "\n".join(lines)


def _same_examples(arrangement: Arrangement, a: int, b: int) -> bool:
    """True where most examples are in both conditions of some target."""

    def there(condition: int) -> np.ndarray:
        own = condition in arrangement.own
        grid = arrangement.slots[:, arrangement.own.index(condition)] if own else arrangement.common[None, arrangement.shared.index(condition)]
        return np.asarray((grid >= 0).any(-1))

    both = there(a) & there(b)
    either = there(a) | there(b)
    return bool(both.sum() > 0.5 * either.sum())


def _below(partial: Partial, cutoff: float) -> dict[str, np.ndarray]:
    """Return the tests of a partial result that can be significant."""
    keep = partial["p"] <= cutoff
    return {name: v[keep] for name, v in partial.items() if name not in ("counts", "nan")}


def _rule(options: PathwaysOptions, family: Family) -> str:
    names = {
        "bh": "q ≤ {q:g}, Benjamini–Hochberg",
        "by": "q ≤ {q:g}, Benjamini–Yekutieli",
        "bonferroni": "Bonferroni, {q:g}",
        "none": "p < {q:g}, not corrected",
    }
    rule = names[options.correction].format(q=options.q)
    if options.correction == "none":
        rule += f": about {options.q * family.tests:,.0f} would be by chance alone"
    else:
        rule += " over the whole family"
    if options.min_effect:
        rule += f", |effect| ≥ {options.min_effect:g}"
    return rule + (f", |g| ≥ {options.min_g:g}" if options.min_g else "")


def _pair_table(found: Found, arrangement: Arrangement, design: Design) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for (a, b), (tested, constant, few) in zip(design.pairs, found.counts, strict=True):
        condition, against = arrangement.conditions[a], arrangement.conditions[b]
        mine = (found.table["condition"] == condition) & (found.table["against"] == against)
        rows.append(
            {
                "condition": condition, "against": against, "tested": int(tested), "significant": int(mine.sum()),
                "constant": int(constant), "too_few": int(few),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _power(design: Design, arrangement: Arrangement, family: Family) -> str:
    """Say which effect would be found with 80 % power if it were the only one (the hardest case of the correction)."""
    from scipy import special, stats

    n = len(arrangement.examples) * (1 if design.by_example else arrangement.replicates)
    level = max(family.cutoff(), family.level / max(family.tests, 1))
    df = n - 1 if design.test in PAIRED else 2 * n - 2
    if df < 1:
        return ""
    noncentral = float(stats.t.isf(level / 2, df)) - float(special.ndtri(0.2))
    g = noncentral / np.sqrt(n) * (1.0 if design.test in PAIRED else np.sqrt(2.0))
    return f"with n = {n:,} per condition an effect of |g| ≥ {g:.2f} is found with 80 % power at this family's threshold (p ≤ {level:.2g})"
