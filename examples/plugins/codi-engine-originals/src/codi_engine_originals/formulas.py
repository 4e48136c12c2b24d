"""The studies' own formulas over runs with the metric ``original-answer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, NoOptions, Options

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work


class OriginalRecovery(Analysis[NoOptions]):
    """Accuracies and recovery as the patching study defined them, per layer and number of patched CE-steps.

    recovery = (patched − corrupted) / (clean − corrupted), 0 where the denominator is not positive. ``patched`` counts the *clean*
    answer, ``corrupted`` the corrupted one's own: two targets are mixed, and the value has no bounds. ``recovery_corrected``: the share
    of patched answers that are the clean one, among pairs whose clean side is right and whose corrupted side is wrong.
    """

    name = "original-recovery"
    Options = NoOptions

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        import pandas as pd

        cells = _cells(runs[0], self.name, ("variant", "original_other"))
        unedited, edited = cells[cells["condition"] == "baseline"], cells[(cells["condition"] != "baseline") & (cells["variant"] == "corrupted")]
        if edited.empty:
            raise UserError(f"{self.name}: {runs[0].path} has no edited cells of corrupted prompts; patch with direction: denoise")
        right = {side: part.set_index("example")["original_correct"] for side, part in unedited.groupby("variant")}
        clean, corrupted = float(right["clean"].mean()), float(right["corrupted"].mean())
        targets = right["clean"].index[(right["clean"] == 1) & (right["corrupted"].reindex(right["clean"].index) == 0)]
        rows: list[dict[str, Any]] = []
        axes = ["condition", *[a for a in ("layer", "steps") if a in edited and edited[a].notna().any()]]
        for place, part in edited.groupby(axes, sort=False):
            patched = float(part["original_other"].mean())
            gap = clean - corrupted
            among = part[part["example"].isin(targets)]
            rows.append(
                {
                    **dict(zip(axes, place, strict=True)), "n": len(part), "clean": clean, "corrupted": corrupted, "patched": patched,
                    "recovery": (patched - corrupted) / gap if gap > 0 else 0.0,
                    "targets": len(among), "recovery_corrected": float(among["original_other"].mean()) if len(among) else float("nan"),
                }
            )  # fmt: skip
        table = pd.DataFrame(rows)
        return AnalysisResult({"recovery": table}, {}, _recovery_text(table, axes))


def _recovery_text(table: pd.DataFrame, axes: Sequence[str]) -> str:
    lines = [f"clean {table['clean'][0]:.1%} · corrupted {table['corrupted'][0]:.1%} (each of its own answer)"]
    for _, row in table.iterrows():
        corrected = "no targets" if row["targets"] == 0 else f"corrected {row['recovery_corrected']:.1%} of {row['targets']}"
        name = " ".join(f"{a} {row[a]}" for a in axes[1:]) or str(row["condition"])
        lines.append(f"  {name}: clean answer {row['patched']:.1%} of {row['n']} · recovery {row['recovery']:+.1%} · {corrected}")
    return "\n".join(lines)


class ImportanceOptions(Options):
    """``by``: a field of the data to split by. ``confidence``: of the Wilson intervals, which the study did not give."""

    by: str | None = None
    confidence: float = 0.95


class OriginalImportance(Analysis[ImportanceOptions]):
    """Step importance as the study counted it: the share of problems whose correctness changes when CE-steps 0 to i − 1 are zero.

    Give two runs to compare as the study did: the baseline of the one with ``eot_times: 1`` with the edited cells of the one with
    ``eot_times: 2``; give one run to compare like with like. Position 0 is 0 by definition, and the values rise by construction.
    """

    name = "original-importance"
    Options = ImportanceOptions
    takes = "many"

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        import pandas as pd

        first, second = self._sides(runs)
        by = [self.options.by] if self.options.by else []
        baseline = _cells(first, self.name, ()).query("condition == 'baseline'").set_index("example")["original_correct"]
        cells = _cells(second, self.name, ("ablated", *by)).query("condition != 'baseline'")
        cells = cells[cells["example"].isin(baseline.index)]
        if cells.empty:
            raise UserError(f"{self.name}: {first.path} and {second.path} have no problem in common")
        cells = cells.assign(changed=cells["original_correct"].to_numpy() != baseline.loc[cells["example"]].to_numpy())
        groups = [("all", cells), *([(str(k), g) for k, g in cells.groupby(by[0])] if by else [])]
        rows = [row for group, part in groups for row in self._rows(group, part)]
        table = pd.DataFrame(rows)
        whole = table[table["group"] == "all"]
        values = " / ".join(f"{v:.3f}" for v in whole["importance"])
        text = f"importance of position 0 to {len(whole) - 1}: {values} (n = {int(whole['n'].iloc[-1])}; cumulative: position i is the effect of 0 to i − 1)"
        return AnalysisResult({"importance": table}, {}, text)

    def _sides(self, runs: Sequence[Run]) -> tuple[Run, Run]:
        """Return the run whose baseline is taken and the run whose edited cells are."""
        if len(runs) == 1:
            return runs[0], runs[0]
        by_times = {int(r.experiment["model"].get("eot_times", 1)): r for r in runs}
        if len(runs) != 2 or set(by_times) != {1, 2}:
            raise UserError(f"{self.name}: give one run, or two of ce-codi: one with eot_times: 1 (baseline), one with eot_times: 2 (edited)")
        return by_times[1], by_times[2]

    def _rows(self, group: str, cells: pd.DataFrame) -> list[dict[str, Any]]:
        from scipy.stats import binomtest

        nothing = {"group": group, "position": 0, "n": cells["example"].nunique(), "importance": 0.0, "ci_low": float("nan"), "ci_high": float("nan")}
        rows = [nothing]
        for position in sorted(int(i) for i in cells["ablated"].unique()):
            part = cells[cells["ablated"] == position]
            count = int(part["changed"].sum())
            low, high = binomtest(count, len(part)).proportion_ci(self.options.confidence, "wilson")
            rows.append(
                {"group": group, "position": position, "n": len(part), "importance": count / len(part), "ci_low": low, "ci_high": high}
            )  # fmt: skip
        return rows


def _cells(run: Run, name: str, columns: Sequence[str]) -> pd.DataFrame:
    cells = run.cells
    for column in ("original_correct", *columns):
        if column not in cells:
            what = "add the metric {plugin: original-answer, rules: …}" if column.startswith("original") else "this analysis needs it"
            raise UserError(f"{name}: {run.path} has no column '{column}'; {what}")
    return cells
