"""Plugins in words: types, options' help, and examples that are valid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from codi_engine.core.describing import example_options, example_yaml, in_words, options_of
from codi_engine.core.experiment import Experiment
from codi_engine.core.explaining import plugin_options
from codi_engine.core.plugin import Options
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.yamlfile import parse_yaml

BUILTIN = plugin_manager(load=False)


class Nested(BaseModel):
    by: str
    seed: int = 0


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "text"),
        (bool, "true or false"),
        (int | None, "whole number, or none"),
        (list[float], "list of numbers"),
        (list[list[str]], "list of lists of texts"),
        (tuple[float, float], "list of 2 numbers"),
        (dict[str, int], "mapping of names to whole numbers"),
        (dict[str, Any], "mapping"),
        (Literal["last", "mean", "max"], "one of last, mean, max"),
        (int | Literal["auto"], "whole number or auto"),
        (Nested | None, "mapping of by, seed, or none"),
        (Annotated[float, Field(gt=0, le=1)], "number > 0, ≤ 1"),
    ],
)
def test_types_in_plain_words(annotation: Any, words: str) -> None:
    class Made(Options):
        value: annotation

    field = Made.model_fields["value"]
    assert in_words(field.annotation, field.metadata) == words


class Shared(Options):
    """``q``: rate of false discoveries."""

    q: float = 0.05


class Many(Shared):
    """What is done. ``path``: a file, or a directory; or ``table``: published numbers.

    ``low``, ``high``: ends of the range. ``alpha`` scales ``path``. Of ``odd`` nothing is said but here.
    """

    path: str
    table: str | None = None
    low: int = Field(default=2, ge=1)
    high: int = 3
    alpha: float = Field(default=1.0, description="how strong")


def test_help_is_read_from_the_docstring_and_inherited() -> None:
    found = {o.name: o for o in options_of(Many)}
    assert {name: o.help for name, o in found.items()} == {
        "q": "rate of false discoveries",
        "path": "a file, or a directory",
        "table": "published numbers",
        "low": "ends of the range",
        "high": "ends of the range",
        "alpha": "how strong",  # a field's own description comes first
    }
    assert found["path"].required
    assert "default" not in found["path"].to_dict()
    assert (found["low"].type, found["low"].default) == ("whole number ≥ 1", 2)


@pytest.mark.parametrize("item", BUILTIN.registered, ids=lambda r: f"{r.kind}-{r.name}")
def test_every_builtin_has_help_for_every_option_and_a_valid_example(item: Any) -> None:
    assert [o.name for o in options_of(item.cls.Options) if not o.help] == []
    plugin_options(item.cls, example_options(item.cls.Options), "x", "y")  # raises where it is not valid
    part = parse_yaml(example_yaml(item, item.name), "example")[0]
    whole = {"name": "x", "model": {"plugin": "codi", "checkpoint": "demo"}, "data": "demo-pairs", **part}
    Experiment.from_dict(whole)


def test_an_example_stands_where_the_plugin_is_used() -> None:
    shown = {r.name: example_yaml(r, r.name) for r in BUILTIN.registered}
    assert shown["patch"].splitlines()[0].startswith("intervention: {plugin: patch, site: resid_post, direction: denoise")
    assert shown["kl"] == "metrics: [{plugin: kl, at: number}]"
    assert shown["accuracy"] == "metrics: [accuracy]"
    assert shown["problems"] == "data: {plugin: problems, path: data/file.jsonl}"
    assert shown["saelens"].startswith("capture: [{sae: demo")


def test_an_example_finds_options_that_are_needed_together() -> None:
    class Either(Options):
        """``a`` or ``b``, and ``c``."""

        a: str | None = None
        c: float | None = None

        def model_post_init(self, context: Any) -> None:
            if self.a is None or self.c is None:
                raise ValueError("give a and c")

    assert example_options(Either) == {"a": "A", "c": 1.0}
