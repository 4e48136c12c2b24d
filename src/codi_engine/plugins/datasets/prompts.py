"""Prompts without answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from codi_engine.core.plugin import Data, Dataset, Example, Options, Prompt
from codi_engine.core.recordfile import identifier
from codi_engine.plugins.datasets.records import Findings, Sample, finish, folded, read_records, scalar_fields, text_of, without_duplicates


class PromptsOptions(Options):
    """``path``: records with a text and any other fields. ``chat_template``: put it into the tokenizer's chat template.

    ``text_field`` names the column.
    ``on_invalid``: ``error`` or ``drop`` (counted). ``limit``: the first so many examples. ``sample``: so many of each value of a field.
    """

    path: str
    text_field: str = "text"
    chat_template: bool = False
    on_invalid: Literal["error", "drop"] = "error"
    limit: int | None = Field(default=None, ge=1)
    sample: Sample | None = None


def load_prompts(options: PromptsOptions, where: Mapping[str, Any] | None = None) -> Data:
    """Read and validate prompts; ``where`` keeps those whose fields have these values."""
    records, digest = read_records(options.path)
    findings = Findings(records[0][0].split(":")[0].split("[")[0], options.on_invalid == "drop")
    items = []
    for number, (place, record) in enumerate(records):
        text = text_of(record, options.text_field, place)
        name = identifier(record["id"], "id", place) if "id" in record else str(number)
        example = Example(name, {"main": Prompt(text)}, scalar_fields(record, (options.text_field, "id")))
        if all(example.fields.get(key) == value for key, value in (where or {}).items()):
            items.append((place, example))
    examples = without_duplicates(items, lambda e: folded(e.prompts["main"].text), findings)
    return finish("prompts", examples, findings, digest, options.limit, options.sample)


class Prompts(Dataset[PromptsOptions]):
    """Prompts without answers (``text`` and any fields); metrics that need an answer do not apply."""

    name = "prompts"
    Options = PromptsOptions

    def load(self) -> Data:
        return load_prompts(self.options)
