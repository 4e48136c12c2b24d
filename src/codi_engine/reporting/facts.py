"""What the sections share of a run: read once, whatever is missing said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import CodiEngineError
from codi_engine.core.planning.controls import is_control
from codi_engine.core.runs.results import BASELINE
from codi_engine.core.watching.status import Status, status_of

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.plugin import Data
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.stored import StoredResult

#: columns that are neither axes nor fields of the data
_OWN = ("key", "text", "answer", "answer_rule")


@dataclass
class Facts:
    """A run and what is derived of it. ``problem`` says why the data could not be read again; then there are no questions."""

    run: Run
    problem: str = field(default="", init=False)

    @cached_property
    def experiment(self) -> dict[str, Any]:
        return self.run.experiment

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return self.run.provenance

    @cached_property
    def status(self) -> Status:
        return status_of(self.run.path)

    @cached_property
    def cells(self) -> pd.DataFrame:
        return self.run.cells

    @property
    def name(self) -> str:
        return str(self.experiment.get("name", self.run.path.resolve().name))

    @property
    def imported(self) -> bool:
        """True where the run was not computed here: it has no experiment with a model."""
        return "model" not in self.experiment

    @cached_property
    def axes(self) -> list[str]:
        """Axes that the cells have, ``example`` and ``condition`` first."""
        return [a for a in self.run.axes if a in self.cells]

    @cached_property
    def places(self) -> list[str]:
        return [a for a in self.axes if a not in ("example", "condition", "variant", "trial", "donor")]

    @cached_property
    def fields(self) -> list[str]:
        """The data's own columns."""
        known = {*self.run.axes, *self.run.metrics, *_OWN}
        return [str(c) for c in self.cells.columns if c not in known]

    @cached_property
    def baseline(self) -> pd.DataFrame:
        return self.cells[self.cells["condition"] == BASELINE] if "condition" in self.cells else self.cells.iloc[:0]

    @cached_property
    def conditions(self) -> list[str]:
        """Edited conditions without controls, in the order of the cells."""
        found: Sequence[Any] = list(self.cells["condition"].dropna().unique()) if "condition" in self.cells else []
        return [str(c) for c in found if c != BASELINE and not is_control(c)]

    @cached_property
    def data(self) -> Data | None:
        """The data set, read again; None (and ``problem``) where it cannot be or has changed since."""
        from codi_engine.core.runs.reload import reload_data

        if self.imported:
            return None
        try:
            return reload_data(self.run)
        except (CodiEngineError, OSError, ImportError) as error:
            self.problem = str(error).splitlines()[0]
            return None

    @cached_property
    def questions(self) -> Mapping[tuple[str, str], tuple[str, float | None]]:
        """(example, variant) → text and right answer."""
        if self.data is None:
            return {}
        examples = {e.id: e for e in (*self.data.pool, *self.data.examples)}
        return {(e.id, variant): (p.text, p.answer) for e in examples.values() for variant, p in e.prompts.items()}

    def question(self, row: Mapping[Any, Any]) -> tuple[str, float | None] | None:
        """Return text and right answer of a cell's prompt."""
        return self.questions.get((str(row["example"]), str(row.get("variant") or "main")))


def metric_of(facts: Facts, result: StoredResult) -> str | None:
    """Return the metric whose change an ``importance`` shows; means of other analyses are of what they define themselves."""
    if result.about.get("analysis", result.name) != "importance":
        return None
    named = (result.about.get("options") or {}).get("metric")
    return str(named) if named else next((m for m in facts.run.metrics if f"mean {m} " in result.summary), None)
