"""What a data set must be: examples with names of their own, the same in every load, and errors that name the line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Data
from codi_engine.testing.suite import Suite, demand

VARIANTS = {"problems": {"main"}, "pairs": {"clean", "corrupted"}, "prompts": {"main"}}


class DatasetSuite(Suite):
    """Conformance of a data set.

    Attributes
    ----------
    plugin, options: see :class:`Suite`; ``{path}`` in a text stands for the file with ``records``
    records: text of a file that can be read, for data sets that read one
    changed: the same file with another content: its digest must differ
    broken: texts that must be refused, each with what the error must name (file and line, ``data.jsonl:2``)
    limited: the option that limits how many examples there are
    """

    kind = "dataset"
    records: ClassVar[str] = ""
    changed: ClassVar[str] = ""
    broken: ClassVar[Mapping[str, str]] = {}
    file: ClassVar[str] = "data.jsonl"
    limited: ClassVar[str] = "limit"

    def loaded(self, setting: Mapping[str, Any], folder: Path, records: str | None = None) -> Data:
        """Write the records below ``folder`` and load them."""
        path = folder / self.file
        path.write_text(self.records if records is None else records, encoding="utf-8")
        data: Data = self.build({k: v.replace("{path}", str(path)) if isinstance(v, str) else v for k, v in setting.items()}).load()
        return data

    def test_every_example_has_a_name_of_its_own(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        data = self.loaded(setting, tmp_path)
        ids = [e.id for e in data.pool]
        demand(data.examples, "a data set without examples must be refused with a UserError")
        demand(all(isinstance(i, str) and i for i in ids), "ids must be text that is not empty")
        demand(len(set(ids)) == len(ids), "ids must be unique: cells, donors and results are keyed by them")
        demand({e.id for e in data.examples} <= set(ids), "examples must be among the pool, which donors and means are taken from")

    def test_examples_have_the_prompts_of_their_kind(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        data = self.loaded(setting, tmp_path)
        for example in data.pool:
            demand(
                set(example.prompts) == VARIANTS[data.kind],
                f"an example of {data.kind} must have the prompts {VARIANTS[data.kind]}; it has {set(example.prompts)}",
            )
            demand(all(p.text.strip() for p in example.prompts.values()), f"example '{example.id}' has an empty prompt")
            odd = {k: v for k, v in example.fields.items() if not (v is None or isinstance(v, (str, int, float, bool)))}
            demand(not odd, f"fields must be scalars; example '{example.id}' has {odd}")

    def test_two_loads_give_the_same(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        first, second = self.loaded(setting, tmp_path), self.loaded(setting, tmp_path)
        demand(first.digest and first.digest == second.digest, "the digest must be stated and the same in every load of the same content")
        demand(list(first.examples) == list(second.examples), "two loads must give the same examples in the same order")

    def test_the_digest_changes_with_the_content(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        if self.changed:
            before, after = self.loaded(setting, tmp_path), self.loaded(setting, tmp_path, self.changed)
            demand(before.digest != after.digest, "another content must have another digest: a run refuses to go on with other data by it")

    def test_a_limit_takes_the_first_examples(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        if self.limited not in self.plugin.Options.model_fields:
            return
        whole = self.loaded({k: v for k, v in setting.items() if k != self.limited}, tmp_path)
        for limit in (1, 2):
            part = self.loaded({**setting, self.limited: limit}, tmp_path)
            demand(
                list(part.examples) == list(whole.examples)[:limit], "a limit must take the first examples, so that a pilot's cells are among the full run's"
            )
            demand(list(part.pool) == list(whole.pool), "a limit must leave the pool whole, so that a pilot has the same donors and means")

    def test_bad_records_are_named_by_file_and_line(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        for text, names in self.broken.items():
            with pytest.raises(UserError) as caught:
                self.loaded(setting, tmp_path, text)
            message = str(caught.value)
            demand(names in message, f"the error must name {names}; it says: {message}")
            demand(len(message.splitlines()) <= 2, f"an error must be one or two lines: {message}")
