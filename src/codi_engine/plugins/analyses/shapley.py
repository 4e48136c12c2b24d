"""``shapley``: what each latent step contributes, from edits of every set of steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.plugins.analyses import coalitions, stepping
from codi_engine.plugins.analyses.options import yes_or_no
from codi_engine.plugins.analyses.selection import metric_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work


class ShapleyOptions(stepping.StepOptions):
    """``condition``, ``metric``, ``at``, ``q``, ``confidence``: as everywhere.

    ``threshold``: share of the unedited metric (patches: of the effect) that a sufficient set must keep (reach).
    """

    threshold: float = Field(default=0.9, gt=0.0, le=1.0)


@dataclass(frozen=True)
class Game:
    """v(S) − v(∅) of every example and set of edited steps (examples × masks; mask 0 is 0), and what it was made of."""

    condition: str
    plugin: str
    metric: str
    players: tuple[int, ...]
    values: np.ndarray
    base: np.ndarray
    examples: list[str]
    missing: int


class Shapley(Analysis[ShapleyOptions]):
    """Shapley values of the latent steps and their interactions, from a sweep over all sets of steps (step: subsets).

    v(S) is an example's metric when the steps S are edited, v(∅) the unedited one. Values are computed exactly, example by
    example, then averaged; tests are one-sample t-tests, corrected over all values and interactions.
    """

    name = "shapley"
    Options = ShapleyOptions

    def check(self, facts: Foreseen) -> None:
        facts.need_steps(self.options.at)
        facts.need_metric(self.options.metric)
        facts.need_condition(self.options.condition)

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses.sufficiency import sufficient_table

        game = self._game(runs[0])
        tables = {**_value_tables(game, self.options), "sets": _set_table(game, self.options.confidence)}
        tables["sizes"] = _size_table(game, self.options.confidence)
        tables["sufficient"] = sufficient_table(game, self.options.threshold, self.options.confidence)
        facts = {"condition": game.condition, "metric": game.metric, "players": list(game.players)}
        return AnalysisResult(tables, summary=_summary(tables, game, self.options), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import shapley_figures

        return shapley_figures.draw(tables, shapley_figures.Shown(**about["facts"]), self.options)

    def _game(self, run: Run) -> Game:
        import numpy as np

        conditions = stepping.step_conditions(run, self.name)
        condition = stepping.chosen(self.options.condition, {c: _lack(sets) for c, sets in conditions.items()}, self.name, "sweep: {step: subsets}")
        cells = stepping.condition_cells(run, condition, self.options.at, self.name)
        metric = metric_of(run, self.options.metric, self.name)
        effects = stepping.effects_by_steps(run, cells, metric, self.name)
        players = tuple(sorted({s for steps in stepping.sets_of(effects) for s in steps}))
        values = np.zeros((len(effects), 2 ** len(players)))
        for steps in stepping.sets_of(effects):
            values[:, coalitions.mask_of(players, steps)] = effects[steps]
        known = np.asarray(~np.isnan(values).any(axis=1))
        if not known.any():
            raise UserError(f"{self.name}: '{metric}' is undefined for every example; choose another metric")
        base = stepping.level(run, cells, metric, self.name).reindex(effects.index).to_numpy(float)
        plugin = str(stepping.interventions(run).get(condition, {}).get("plugin", ""))
        names = [str(e) for e in effects.index[known]]
        return Game(condition, plugin, metric, players, values[known], base[known], names, int((~known).sum()))


def _lack(sets: Sequence[stepping.Steps]) -> str:
    """Say what a condition's sets of steps lack to be all non-empty ones; empty where they are."""
    players = sorted({s for steps in sets for s in steps})
    wanted = 2 ** len(players) - 1
    if len(set(sets)) == wanted:
        return ""
    have = set(sets)
    subsets = (c for count in range(1, len(players) + 1) for c in itertools.combinations(players, count))
    first = next(c for c in subsets if c not in have)
    return f"has {len(have)} of the {wanted:,} sets of steps {players[0]}–{players[-1]} ({stepping.set_name(first)} is not there)"


# -------------------------------------------------------------------------------------------------- tables


def _value_tables(game: Game, options: ShapleyOptions) -> dict[str, pd.DataFrame]:
    """Return ``values``, ``interactions``, ``efficiency`` and ``examples``."""
    import numpy as np
    import pandas as pd

    from codi_engine.kernels.multiple import adjust
    from codi_engine.plugins.analyses.effects import statistics

    count = len(game.players)
    phi = game.values @ coalitions.shapley_weights(count).T
    pairs = list(itertools.combinations(game.players, 2))
    both = game.values @ coalitions.interaction_weights(count).T if pairs else np.empty((len(phi), 0))
    values = pd.DataFrame([{"step": s, **statistics(phi[:, i], options.confidence, False)} for i, s in enumerate(game.players)])
    values.insert(2, "banzhaf", (game.values @ coalitions.banzhaf_weights(count).T).mean(0))
    links = [{"a": a, "b": b, **statistics(both[:, i], options.confidence, False)} for i, (a, b) in enumerate(pairs)]
    interactions = pd.DataFrame(links, columns=["a", "b", *[c for c in values.columns if c not in ("step", "banzhaf")]])
    q = adjust(np.concatenate([values["p"].to_numpy(float), interactions["p"].to_numpy(float)]))
    for table, part in ((values, q[:count]), (interactions, q[count:])):
        table["q"], table["significant"] = part, part < options.q
    whole = game.values[:, -1]
    efficiency = pd.DataFrame(
        [
            {
                "sum_of_values": phi.sum(1).mean(), "all_edited": whole.mean(), "largest_deviation": np.abs(phi.sum(1) - whole).max(),
                "n": len(phi), "left_out": game.missing,
            }
        ]
    )  # fmt: skip
    examples = pd.DataFrame(phi, columns=[f"step_{s}" for s in game.players]).assign(all_edited=whole)
    examples.insert(0, "example", game.examples)
    return {"values": values, "interactions": interactions, "efficiency": efficiency, "examples": examples}


def _set_table(game: Game, confidence: float) -> pd.DataFrame:
    """Return the effect of every set of edited steps."""
    import pandas as pd

    from codi_engine.plugins.analyses.effects import are_shares, statistics

    shares = yes_or_no(game.metric) and are_shares(pd.Series(game.values[:, 1:].ravel()))
    rows = []
    for mask in sorted(range(1, game.values.shape[1]), key=lambda m: (m.bit_count(), coalitions.members_of(game.players, m))):
        edited = coalitions.members_of(game.players, mask)
        found = statistics(game.values[:, mask], confidence, shares)
        rows.append({"edited": stepping.set_name(edited), "size": len(edited), **{k: found[k] for k in ("n", "mean", "ci_low", "ci_high", "sd", "hedges_g")}})
    return pd.DataFrame(rows)


def _size_table(game: Game, confidence: float) -> pd.DataFrame:
    """Return the effect by number of edited steps: per example the mean over all sets of that size."""
    import numpy as np
    import pandas as pd

    from codi_engine.plugins.analyses.effects import statistics

    sizes = np.array([m.bit_count() for m in range(game.values.shape[1])])
    rows = []
    for size in range(len(game.players) + 1):
        found = statistics(game.values[:, sizes == size].mean(1), confidence, False)
        rows.append({"edited_steps": size, "sets": int((sizes == size).sum()), **{k: found[k] for k in ("n", "mean", "ci_low", "ci_high")}})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------- console


def _summary(tables: dict[str, pd.DataFrame], game: Game, options: ShapleyOptions) -> str:
    values, links, whole = tables["values"], tables["interactions"], tables["efficiency"].iloc[0]
    lines = [f"{game.condition}: Shapley value of editing each step, {game.metric} ({stepping.n_text(values['n'])} examples)", *_value_lines(values)]
    lines.append(
        f"sum {whole['sum_of_values']:+.4g} = effect of editing all steps {whole['all_edited']:+.4g} "
        f"(examples differ by at most {whole['largest_deviation']:.1g})"
    )
    if len(links):
        lines.append(_link_line(links))
    tests = int(values["p"].notna().sum() + links["p"].notna().sum())
    lines.append(f"* q < {options.q:g}, BH over {tests} values and interactions")
    if game.missing:
        lines.append(f"left out: {game.missing} examples whose {game.metric} is undefined or missing for some set")
    return "\n".join([*lines, "", *_sufficient_lines(tables["sufficient"], game, options)])


def _value_lines(values: pd.DataFrame) -> list[str]:
    from codi_engine.plugins.analyses.effects import interval_text

    return [f"  step {row['step']}  {row['mean']:+.3f}{'*' if row['significant'] else ' '}{interval_text(row)}" for _, row in values.iterrows()]


def _link_line(links: pd.DataFrame) -> str:
    from codi_engine.plugins.analyses.effects import interval_text

    row = links.iloc[int(links["mean"].abs().argmax())]
    mark = "*" if row["significant"] else ""
    return f"strongest interaction: steps {row['a']} and {row['b']} {row['mean']:+.3f}{mark}{interval_text(row)}"


def _sufficient_lines(table: pd.DataFrame, game: Game, options: ShapleyOptions) -> list[str]:
    verb = "patched" if game.plugin == "patch" else "kept"
    first = table.iloc[0]
    if table["share"].isna().all():
        return [f"sufficient sets: {first['note']}"]
    good = table[table["smallest"]]
    if good.empty:
        best = table.iloc[int(table["share"].argmax())]
        return [f"no set of {verb} steps reaches {options.threshold:.0%} (100% is {first['reference']}); most: {best['steps']}, {best['share']:.0%}"]
    size = int(good["size"].iloc[0])
    lines = [f"smallest sets of {verb} steps (share ≥ {options.threshold:.0%}; 100% is {first['reference']}): {len(good)} with {size} steps"]
    lines += [
        f"  {row['steps']}  {row['share']:.1%} [{row['ci_low']:.1%}, {row['ci_high']:.1%}]{'' if row['certain'] else '  (the interval reaches below)'}"
        for _, row in good.sort_values("share", ascending=False, kind="stable").head(6).iterrows()
    ]
    return lines + ([f"  and {len(good) - 6} more, in the table"] if len(good) > 6 else [])
