"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError
from codi_engine.core.runs.whole import whole_file
from codi_engine.reporting import cards, film
from codi_engine.reporting.facts import Facts
from codi_engine.reporting.safe import policy
from codi_engine.reporting.section import Section, assets, environment

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

#: further sections, shown after the analyses: functions of a run that return a section, or None where there is nothing to show
SECTIONS: list[Callable[[Run], Section | None]] = [film.section, cards.section]
#: name of the file below the run
FILE = "report.html"


def report(run: str | Path | Run, output: str | Path | None = None) -> Path:
    """Write the report of a run and return its path.

    Parameters
    ----------
    run: a run, or its directory
    output: the file to write; default: ``report.html`` in the run's directory

    Raises
    ------
    UserError: no run there, several runs there, or the file cannot be written
    """
    opened = open_one(run) if isinstance(run, (str, Path)) else run
    path = Path(output) if output is not None else opened.path / FILE
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give a file, such as -o {path / FILE}")
    text = render_page(opened)
    try:
        with whole_file(path, force=True) as part:
            part.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    except UserError as error:
        raise UserError(f"{error}; or choose another place with -o FILE") from None
    return path


def open_one(path: str | Path) -> Run:
    """Open a run; a directory of several is refused by the names that are there."""
    from codi_engine.core.planning.checkpoints import runs_below
    from codi_engine.core.runs.results import open_run
    from codi_engine.store.layout import LEDGER
    from codi_engine.store.mirror import place

    root = place(path)
    below = [] if (root / LEDGER).is_file() or not root.is_dir() else [p.name for p in runs_below(root)]
    if below:
        shown = ", ".join(below[:6]) + (", …" if len(below) > 6 else "")
        raise UserError(f"{root}: holds the runs {shown}; a report is of one of them: codi-engine report {root / below[0]}")
    return open_run(root)


def render_page(run: Run) -> str:
    """Return the report of a run as HTML."""
    from codi_engine import __version__
    from codi_engine.reporting import overview
    from codi_engine.reporting.palette import rules

    facts = Facts(run)
    style, script = "\n" + assets(".css") + "\n" + rules() + "\n", "\n" + assets(".js") + "\n"
    return environment().get_template("page.html").render(
        head=overview.head(facts), sections=sections(facts), style=style, script=script, policy=policy([style], [script]), version=__version__,
        written=time.strftime("%Y-%m-%d", time.gmtime()),
    )  # fmt: skip


def sections(facts: Facts) -> list[Section]:
    """Return the sections that have something to show, in their order."""
    from codi_engine.reporting import analyses, cells, overview, provenance

    found: list[Section | None] = [overview.what(facts), overview.checks(facts), overview.baseline(facts), *analyses.sections(facts)]
    found += [make(facts.run) for make in SECTIONS]
    found += [cells.cells(facts), provenance.provenance(facts), provenance.reproduce(facts)]
    return [s for s in found if s is not None]
