"""A data set that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Data, Dataset, Example, Options, Prompt
from codi_engine.testing import DatasetSuite
from tests.support.clauses import failures, suite


class LinesOptions(Options):
    """``path``: a file of sums, one a line; ``limit``: how many."""

    path: str
    limit: int | None = None


class Lines(Dataset[LinesOptions]):
    """One problem per line: ``1 + 2 = 3``."""

    name = "lines"
    Options = LinesOptions

    def load(self) -> Data:
        path = Path(self.options.path)
        text = path.read_text(encoding="utf-8")
        examples = [self.example(number, line, path) for number, line in enumerate(text.splitlines(), 1)]
        if not examples:
            raise UserError(f"{path.name}: holds no example")
        return Data("problems", examples[: self.options.limit], examples, (), self.digest(text))

    def example(self, number: int, line: str, path: Path) -> Example:
        question, equals, answer = line.partition(" = ")
        if not equals or not answer.isdigit():
            raise UserError(f"{path.name}:{number}: write 'question = answer'")
        return Example(str(number), {"main": Prompt(question, float(answer))}, {"length": len(question)})

    def digest(self, text: str) -> str:
        return str(sum(map(ord, text)) + len(text))


class OfLines(DatasetSuite):
    plugin = Lines
    options = ({"path": "{path}"},)
    records = "1 + 2 = 3\n2 + 2 = 4\n3 + 4 = 7\n"
    changed = "1 + 2 = 3\n2 + 2 = 4\n3 + 5 = 8\n"
    broken = {"1 + 2 = 3\n2 + 2\n": "data.jsonl:2", "1 + 2 = three\n": "data.jsonl:1"}


class SameNames(Lines):
    """Every example is called the same."""

    def example(self, number: int, line: str, path: Path) -> Example:
        return replace(super().example(number, line, path), id="x")


class NoPrompt(Lines):
    """Empty questions."""

    def example(self, number: int, line: str, path: Path) -> Example:
        made = super().example(number, line, path)
        return replace(made, prompts={"main": replace(made.prompts["main"], text="  ")})


class WrongSide(Lines):
    """A problem with the prompt of a pair."""

    def example(self, number: int, line: str, path: Path) -> Example:
        made = super().example(number, line, path)
        return replace(made, prompts={"clean": made.prompts["main"]})


class NestedField(Lines):
    """A field that no column can hold."""

    def example(self, number: int, line: str, path: Path) -> Example:
        return replace(super().example(number, line, path), fields={"parts": line.split()})


class Restless(Lines):
    """Another digest in every load."""

    def digest(self, text: str) -> str:
        return uuid.uuid4().hex


class Reordered(Lines):
    """Another order in every load."""

    loads = iter(range(10**6))

    def load(self) -> Data:
        data, turn = super().load(), next(self.loads) % 2
        return replace(data, pool=data.pool, examples=list(data.examples)[:: -1 if turn else 1]) if self.options.limit is None else data


class Careless(Lines):
    """A digest that the content does not change."""

    def digest(self, text: str) -> str:
        return "lines"


class LastOnes(Lines):
    """A limit takes the last examples."""

    def load(self) -> Data:
        data = super().load()
        return replace(data, examples=data.pool[-(self.options.limit or len(data.pool)) :])


class SmallPool(Lines):
    """A limit cuts the pool too."""

    def load(self) -> Data:
        data = super().load()
        return replace(data, pool=data.examples)


class Silent(Lines):
    """Leaves out what it cannot read."""

    def load(self) -> Data:
        path = Path(self.options.path)
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.partition(" = ")[2].isdigit()]
        examples = [self.example(number, line, path) for number, line in enumerate(kept, 1)]
        return Data("problems", examples[: self.options.limit], examples, (), self.digest("\n".join(lines)))


class Vague(Lines):
    """Names no line."""

    def example(self, number: int, line: str, path: Path) -> Example:
        try:
            return super().example(number, line, path)
        except UserError:
            raise UserError("a line cannot be read") from None


class Slack(LinesOptions):
    """``path``: a file of sums; ``limit``: how many."""

    model_config = {**LinesOptions.model_config, "extra": "ignore"}


class Lax(Lines):
    """Takes any option."""

    Options = Slack


class Unsaid(LinesOptions):
    """Says nothing."""

    seed: int = 0


class Undocumented(Lines):
    """An option without help."""

    Options = Unsaid


BROKEN = "bad_records_are_named_by_file_and_line"
SAME, LIMIT = "two_loads_give_the_same", "a_limit_takes_the_first_examples"
WRONG: dict[type[Lines], tuple[str, set[str]]] = {
    SameNames: ("ids must be unique", {"every_example_has_a_name_of_its_own"}),
    NoPrompt: ("empty prompt", {"examples_have_the_prompts_of_their_kind"}),
    WrongSide: ("must have the prompts", {"examples_have_the_prompts_of_their_kind"}),
    NestedField: ("must be scalars", {"examples_have_the_prompts_of_their_kind"}),
    Restless: ("the same in every load", {SAME}),
    Careless: ("another digest", {"the_digest_changes_with_the_content"}),
    LastOnes: ("first examples", {LIMIT}),
    SmallPool: ("pool whole", {LIMIT}),
    Silent: ("DID NOT RAISE", {BROKEN}),
    Vague: ("must name data.jsonl:2", {BROKEN}),
    Lax: ("extra='forbid'", {"its_options_are_strict", "an_unknown_option_is_refused"}),
    Undocumented: ("``seed``", {"its_docstrings_name_every_option"}),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_data_set_fails_its_clauses_and_no_other(cls: type[Lines], tmp_path: Path) -> None:
    words, clauses = WRONG[cls]
    failed = failures(suite(OfLines, cls), tmp_path)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


def test_another_order_in_every_load_is_noticed(tmp_path: Path) -> None:
    failed = failures(suite(OfLines, Reordered), tmp_path)
    assert "in the same order" in failed[SAME]


class TestLines(OfLines):
    """A sound one."""
