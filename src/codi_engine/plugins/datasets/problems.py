"""Problems with one numeric answer each (GSM8K and the like)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from codi_engine.core.plugin import Data, Dataset, Example, Options, Prompt
from codi_engine.core.recordfile import identifier
from codi_engine.core.solutions.answers import answer_of
from codi_engine.plugins.datasets.records import Findings, Sample, finish, folded, read_records, scalar_fields, text_of, without_duplicates

_IDS = ("id", "gsm8k_id", "problem_id")


class ProblemsOptions(Options):
    """``path``: JSONL, JSON or Parquet. Records that cannot be used are an error, or dropped and counted.

    ``question_field`` and ``answer_field`` name the columns.
    ``on_invalid``: ``error`` or ``drop`` (counted). ``limit``: the first so many examples. ``sample``: so many of each value of a field.
    """

    path: str
    question_field: str = "question"
    answer_field: str = "answer"
    on_invalid: Literal["error", "drop"] = "error"
    limit: int | None = Field(default=None, ge=1)
    sample: Sample | None = None


def load_problems(options: ProblemsOptions) -> Data:
    """Read and validate problems."""
    records, digest = read_records(options.path)
    findings = Findings(records[0][0].split(":")[0].split("[")[0], options.on_invalid == "drop")
    items: list[tuple[str, Example]] = []
    for number, (place, record) in enumerate(records):
        question = text_of(record, options.question_field, place)
        answer = answer_of(record.get(options.answer_field))
        if answer is None:
            findings.add("unparsable answers", place)
            continue
        name = next((identifier(record[k], k, place) for k in _IDS if k in record), str(number))
        fields = scalar_fields(record, (options.question_field, options.answer_field, *_IDS))
        if "<<" in str(record[options.answer_field]):  # GSM8K's answers are written solutions
            fields.setdefault("solution", record[options.answer_field])
        items.append((place, Example(name, {"main": Prompt(question, answer)}, fields)))
    examples = without_duplicates(items, lambda e: folded(e.prompts["main"].text), findings)
    return finish("problems", examples, findings, digest, options.limit, options.sample)


class Problems(Dataset[ProblemsOptions]):
    """Problems with ``question`` and ``answer`` (a number, or a solution ending in ``#### 18``)."""

    name = "problems"
    Options = ProblemsOptions

    def load(self) -> Data:
        return load_problems(self.options)
