"""What a run would compute and cost, in the words and rows that ``plan`` and ``--dry-run`` show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.controls import control_of, in_words
from codi_engine.core.planning.costs import Costs, money_text, size_text, time_text
from codi_engine.core.watching.disk import free_bytes, free_text

if TYPE_CHECKING:
    from codi_engine.core.planning.preparing import Prepared


@dataclass(frozen=True)
class PlanSummary:
    """What a run would compute and cost, known without loading any weight (``costs``: estimated, or timed where it was measured).

    ``reused``: what other runs have of it, in words.
    """

    prepared: Prepared
    output: Path
    cells: int
    prompts: int
    units: int
    costs: Costs
    reused: str = ""

    @property
    def forwards(self) -> int:
        return self.costs.rows

    @property
    def bytes(self) -> int:
        return self.costs.disk

    @property
    def seconds(self) -> float:
        return self.costs.seconds

    @property
    def devices(self) -> str:
        return ", ".join(self.prepared.devices)

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs: what is run."""
        plan = self.prepared.plan
        rows = [
            ("experiment", self.prepared.experiment.name),
            ("model", f"{plan.info.family}, {plan.info.layers} layers × {plan.info.width}, {plan.info.latents} latent steps, {self.devices}"),
            ("data", f"{len(plan.data.examples):,} {plan.data.kind} ({len(plan.data.pool):,} in the pool)"),
        ]
        for condition in (c for c in plan.conditions if c.control is None):
            axes = " × ".join(f"{name} {len(values)}" for name, values in condition.axes.items()) or "one point"
            tokens = {"last": "last token of every forward", "all": "every token", None: condition.phase}
            where = tokens[condition.tokens]
            rows.append((f"  {condition.name}", f"{condition.plugin.name} at {condition.site}, {where}: {axes}"))
        rows += self._controls()
        own, controls = self.cells - plan.control_cells, plan.control_cells
        cells = f"{own:,} edited" + (f" + {controls:,} of controls" if controls else "") + f" + {self.prompts * plan.trials:,} unedited"
        rows += [("cells", cells), ("units", f"{self.units:,}")]
        return [*rows, ("reuse", self.reused)] if self.reused else rows

    def costed(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs: what it costs in all, and where the numbers are from."""
        costs = self.costs
        where = "on this machine's CPU" if not costs.gpu else f"on {self.devices} of this machine"
        without = f", without {', '.join(costs.unknown)} (unknown)" if costs.unknown else ""
        rows = [
            ("forwards", f"about {costs.rows:,} token rows through the model"),
            ("disk", f"about {size_text(costs.disk)}{free_text(self.output, costs.disk)}"),
            ("time", f"about {time_text(costs.seconds)} {where}{without}"),
            ("from", costs.basis),
        ]
        if costs.money is not None:
            rows.append(("money", f"about {money_text(costs.money)} at {costs.price:g} per {'GPU-hour' if costs.gpu else 'hour of this machine'}"))
        rows.append(("output", str(self.output)))
        return rows + [("note", n) for n in [*self.prepared.plan.data.report, *self.prepared.plan.notes, *costs.notes]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "experiment": self.prepared.experiment.name, "output": str(self.output), "cells": self.cells - self.prepared.plan.control_cells,
            "controls": self.prepared.plan.control_cells, "unedited": self.prompts * self.prepared.plan.trials, "units": self.units,
            "free_bytes": free_bytes(self.output), **self.costs.to_dict(),
        }  # fmt: skip

    def _controls(self) -> list[tuple[str, str]]:
        """Return one row per condition that has controls: which ones, on how many examples, and how many cells."""
        plan, names = self.prepared.plan, self.prepared.plan.conditions
        cells = Counter(c.condition for c in plan.cells)
        rows = []
        for condition in names:
            mine = [(n, c) for n, c in enumerate(names) if c.control is not None and control_of(c.name) == (condition.name, c.control)]
            if mine:
                examples = min(len(plan.data.examples), mine[0][1].examples or len(plan.data.examples))
                what = ", ".join(in_words(str(c.control)) for _, c in mine)
                rows.append(("  controls", f"of {condition.name}: {what}; {examples} example{'s' * (examples != 1)}, {sum(cells[n] for n, _ in mine):,} cells"))
        return rows
