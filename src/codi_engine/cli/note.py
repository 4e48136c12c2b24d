"""``codi-engine note``: dated notes beside a run."""

from __future__ import annotations

import sys

import click

from codi_engine.cli.options import DEBUG, JSON
from codi_engine.cli.places import RUN


@click.command()
@click.argument("directory", metavar="RUN", type=RUN)
@click.argument("words", nargs=-1, metavar="[TEXT]")
@click.option("--edit", is_flag=True, help="Write the note in $EDITOR.")
@JSON
@DEBUG
def note(directory: str, words: tuple[str, ...], edit: bool, as_json: bool, debug: bool) -> None:
    """Add a dated note to a RUN, or print its notes.

    TEXT `-` is read from standard input. Notes lie in RUN/notes.md, which is only ever appended to; a run that is being written
    can be noted too. The experiment's own `hypothesis:` and `notes:` are shown first.
    """
    from codi_engine.core.errors import UserError
    from codi_engine.core.text import json_shown, neutral
    from codi_engine.core.watching.notes import add_note, folder_of

    folder_of(directory)
    if edit and words:
        raise UserError("note: give the TEXT or --edit, not both")
    text = click.edit("", extension=".md") if edit else sys.stdin.read() if words == ("-",) else " ".join(words) if words else None
    if text is not None:
        made = add_note(directory, text)
        click.echo(json_shown(made._asdict(), None) if as_json else neutral(f"noted in {directory}/notes.md, {made.time}"))
        return
    if edit:
        click.echo("nothing was written: the note was not saved")
        return
    _show(directory, as_json)


def _show(directory: str, as_json: bool) -> None:
    from codi_engine.cli.show import console, plain
    from codi_engine.core.text import json_shown
    from codi_engine.core.watching.notes import notes_of, stated

    hypothesis, remarks = stated(directory)
    notes = notes_of(directory)
    if as_json:
        click.echo(json_shown({"hypothesis": hypothesis, "notes": remarks, "added": [n._asdict() for n in notes]}, 1))
        return
    screen = console()
    for title, text in [("hypothesis", hypothesis), ("notes of the experiment", remarks), *((n.time or "without a date", n.text) for n in notes)]:
        if text:
            screen.print(plain(title, "bold"))
            screen.print(plain(text), soft_wrap=True)
            screen.print()
    if not (hypothesis or remarks or notes):
        screen.print(plain(f'no notes yet; codi-engine note {directory} "what you think" adds one'), soft_wrap=True)
