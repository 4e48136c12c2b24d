"""The packaged data of the demo model: held-out problems, clean/corrupted pairs and prompts of two groups."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Literal

from pydantic import Field

from codi_engine.core.plugin import Data, Dataset, Options
from codi_engine.plugins.datasets.pairs import PairsOptions, load_pairs
from codi_engine.plugins.datasets.problems import ProblemsOptions, load_problems
from codi_engine.plugins.datasets.prompts import PromptsOptions, load_prompts
from codi_engine.plugins.datasets.records import Sample


class DemoOptions(Options):
    """Which of the packaged records.

    ``limit``: the first so many examples. ``sample``: so many of each value of a field.
    """

    limit: int | None = Field(default=None, ge=1)
    sample: Sample | None = None


class DemoPairsOptions(DemoOptions):
    """``both_correct``: ``true`` keeps the pairs of which the demo model answers both sides right.

    ``limit``: the first so many pairs. ``sample``: so many of each value of a field.
    """

    both_correct: bool | None = None


class DemoPromptsOptions(DemoOptions):
    """``group``: ``more`` or ``less`` keeps the prompts of that group only.

    ``limit``: the first so many prompts. ``sample``: so many of each value of a field.
    """

    group: Literal["more", "less"] | None = None


def _packaged(name: str) -> str:
    return str(files("codi_engine.plugins").joinpath("demo") / name)


class DemoProblems(Dataset[DemoOptions]):
    """Held-out problems of 1 to 4 arithmetic steps for the demo model."""

    name = "demo-problems"
    Options = DemoOptions

    def load(self) -> Data:
        return load_problems(ProblemsOptions(path=_packaged("problems.jsonl"), limit=self.options.limit, sample=self.options.sample))


class DemoPairs(Dataset[DemoPairsOptions]):
    """Held-out clean/corrupted pairs for the demo model: one number of the question changed."""

    name = "demo-pairs"
    Options = DemoPairsOptions

    def load(self) -> Data:
        options = self.options
        where: dict[str, Any] = {} if options.both_correct is None else {"both_correct": options.both_correct}
        return load_pairs(PairsOptions(path=_packaged("pairs.jsonl"), limit=options.limit, sample=options.sample, where=where))


class DemoPrompts(Dataset[DemoPromptsOptions]):
    """Twelve held-out prompts for the demo as a plain model: later steps add or multiply (more), subtract or divide (less)."""

    name = "demo-prompts"
    Options = DemoPromptsOptions

    def load(self) -> Data:
        options = self.options
        where: dict[str, Any] = {} if options.group is None else {"group": options.group}
        return load_prompts(PromptsOptions(path=_packaged("prompts.jsonl"), limit=options.limit, sample=options.sample), where)
