"""``codi-engine ls --inventory`` in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from codi_engine.cli.show import console, plain, table
from codi_engine.cli.tables import grid
from codi_engine.core.planning.costs import size_text
from codi_engine.core.text import json_shown

if TYPE_CHECKING:
    from codi_engine.core.watching.inventory import Entry


def show(entries: Sequence[Entry], as_json: bool) -> None:
    """Print one row per run; what is wrong with those that cannot be read comes below."""
    if as_json:
        click.echo(json_shown([e.to_dict() for e in entries]))
        return
    if not entries:
        console().print(plain("no runs here"))
        return
    heads = ["name", "data", "filters", "n", "data digest", "model digest", "cells", "disk", "run"]
    rows = [_row(e) for e in entries]
    widths = [max(len(head), *(len(row[n]) for row in rows)) for n, head in enumerate(heads)]
    if console().is_terminal and sum(widths) + 2 * len(widths) > console().width:
        _stacked(heads, rows)
    else:
        grid(heads, rows, left=3)
    for entry in entries:
        if entry.problem:
            console().print(plain(entry.problem, "yellow"), soft_wrap=True)


def _stacked(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one block per run: in a narrow terminal a table would lose the columns that tell runs apart."""
    for number, row in enumerate(rows):
        if number:
            console().print()
        table([(heads[-1], row[-1]), *zip(heads[:-1], row[:-1], strict=True)])


def _row(entry: Entry) -> list[str]:
    from codi_engine.core.watching.inventory import SHORT

    if entry.problem:
        return [entry.name, "cannot be read", "–", "–", "–", "–", "–", size_text(entry.bytes), entry.run]
    data = " ".join(v for v in (entry.data, f"({entry.origin})" if entry.data and entry.origin else entry.origin) if v)
    filters = ", ".join(f"{k} {json.dumps(v, ensure_ascii=False)}" for k, v in entry.filters.items())
    digests = [entry.data_digest[:SHORT] or "–", entry.model_digest[:SHORT] or "–"]
    return [entry.name, data or "–", filters or "none", entry.size, *digests, f"{entry.cells:,}", size_text(entry.bytes), entry.run]
