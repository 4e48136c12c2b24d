"""What the terminal shows: neutral text, progress in and outside a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from codi_engine.cli.progress import progress
from codi_engine.cli.show import _ranges, plain
from codi_engine.core.progress import Progress
from codi_engine.core.text import neutral
from codi_engine.core.watching.showing import TerminalProgress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The answer is: 12", "The answer is: 12"),
        ("a\n\tb", "a\n\tb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\x00\x07\x7f\r", "a\\x00\\x07\\x7f\\x0d"),
        ("‮evil", "\\u202eevil"),
        ("σ – “ü”", "σ – “ü”"),
    ],
)
def test_control_characters_become_codes(text: str, shown: str) -> None:
    assert neutral(text) == shown


@given(st.text())
def test_neutral_text_moves_no_cursor(text: str) -> None:
    out = neutral(text)
    assert all(c.isprintable() or c in "\n\t" or c.isspace() for c in out)
    assert neutral(out) == out


def test_markup_is_not_read() -> None:
    file = io.StringIO()
    Console(file=file, width=60).print(plain("[bold]x[/bold] [link=http://a]y[/link]"))
    assert file.getvalue().strip() == "[bold]x[/bold] [link=http://a]y[/link]"


@pytest.mark.parametrize(("places", "shown"), [("0,1,2,5", "0…2, 5"), ("3", "3"), ("-2,-1", "-2…-1"), ("5,0", "0, 5"), ("bot", "bot")])
def test_places_are_shortened(places: str, shown: str) -> None:
    assert _ranges(places) == shown


def told(terminal: bool, every: float) -> str:
    file = io.StringIO()
    shown = TerminalProgress(Console(file=file, force_terminal=terminal, width=90), every)
    shown.start("sweep", 10, "cells")
    shown.note("[b]a note[/b]")
    for _ in range(5):
        shown.advance(2)
    shown.finish()
    shown.finish()
    return file.getvalue()


def test_outside_a_terminal_lines_come_now_and_then() -> None:
    assert told(False, every=1e9) == "[b]a note[/b]\n"
    lines = told(False, every=0.0).splitlines()
    assert len(lines) == 6, lines
    assert lines[-1].startswith("sweep: 10 of 10 cells, ")
    assert "0:00:00 left" in lines[-1]


def test_in_a_terminal_there_is_a_bar() -> None:
    text = told(True, every=0.0)
    assert "sweep" in text
    assert "10 of 10 cells" in text
    assert "cells/s" in text


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as shown:
        shown.start("sweep", 1, "cells")
        shown.note("x")
        shown.advance(1)
    assert type(shown) is Progress
    assert capsys.readouterr() == ("", "")


def test_the_bar_ends_when_the_command_fails() -> None:
    def fail() -> None:
        with progress(quiet=False) as shown:
            seen.append(shown)
            shown.start("sweep", 3, "cells")
            raise ValueError("boom")

    seen: list[Progress] = []
    with pytest.raises(ValueError, match="boom"):
        fail()
    assert isinstance(seen[0], TerminalProgress)
    assert seen[0]._bars is None
