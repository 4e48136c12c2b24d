"""Notes beside a run: appended, read back as they were, and no part of what is checked."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine import open_run
from codi_engine.core.errors import UserError
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.watching.notes import FILE, add_note, notes_of, stated


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), tmp_path_factory.mktemp("notes") / "run")


def test_notes_are_appended_and_the_run_stays_what_it_was(run: Path) -> None:
    before = open_run(run).digest
    first = add_note(run, "the first\n\nwith two paragraphs")
    add_note(run, "## 2026-01-01T00:00:00Z\nlooks like another note\n\\## 2026-")
    found = open_run(run).notes
    assert [n.text for n in found] == ["the first\n\nwith two paragraphs", "## 2026-01-01T00:00:00Z\nlooks like another note\n\\## 2026-"]
    assert found[0] == first
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first.time)
    assert open_run(run).digest == before
    assert open_run(run).store.verify() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")).filter(lambda t: t.strip()), min_size=1, max_size=4))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "experiment.yaml").write_text("name: any\n", encoding="utf-8")
    for text in texts:
        add_note(folder, text)
    assert [n.text for n in notes_of(folder)] == [t.strip("\n") for t in texts]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: any\n", encoding="utf-8")
    threads = [threading.Thread(target=lambda n=n: [add_note(tmp_path, f"{n} " * 500) for _ in range(10)]) for n in "ab"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(n.text for n in notes_of(tmp_path)) == ["a " * 500] * 10 + ["b " * 500] * 10


def test_what_was_written_by_hand_is_a_note_too(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("by hand\n\n## 2026-01-02T03:04:05Z\r\n\r\nwith other line ends\r\n", encoding="utf-8", newline="")
    assert notes_of(tmp_path) == [("", "by hand"), ("2026-01-02T03:04:05Z", "with other line ends")]


def test_refusals(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        add_note(tmp_path, "x")
    with pytest.raises(UserError, match="no words"):
        add_note(run, " \n ")
    with pytest.raises(UserError, match="1 MB"):
        add_note(run, "x" * (1 << 20))
    assert notes_of(tmp_path / "nowhere") == []


def test_what_the_experiment_itself_says(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("hypothesis: early steps\nnotes: a remark\n", encoding="utf-8")
    assert stated(tmp_path) == ("early steps", "a remark")
    assert stated(tmp_path / "nowhere") == ("", "")
