"""Built-in data sets."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import Dataset
from codi_engine.plugins.datasets.demo import DemoPairs, DemoProblems, DemoPrompts
from codi_engine.plugins.datasets.pairs import Pairs
from codi_engine.plugins.datasets.problems import Problems
from codi_engine.plugins.datasets.prompts import Prompts

DATASETS: list[type[Dataset[Any]]] = [Problems, Pairs, Prompts, DemoProblems, DemoPairs, DemoPrompts]
