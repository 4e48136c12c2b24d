"""``codi-engine plot``: a figure of a run again, from its stored tables, in another format or size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from codi_engine.cli.options import DEBUG, JSON
from codi_engine.cli.places import RUN

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@click.command()
@click.argument("directory", metavar="RUN", type=RUN)
@click.argument("figure", required=False)
@click.option("--format", "kind", type=click.Choice(["pdf", "svg", "png"]), help="Default: by the ending of -o, else pdf.")
@click.option("--dpi", type=click.IntRange(20, 2400), default=200, show_default=True, help="Of PNG.")
@click.option("--size", metavar="WxH", help="In inches, or with a unit: 7x4, 9cmx6cm. Default: the figure's own.")
@click.option("-o", "--output", metavar="PATH", help="File, or folder with --all. Default: FIGURE.FORMAT here.")
@click.option("--all", "every", is_flag=True, help="Draw all figures, into a folder.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@JSON
@DEBUG
def plot(
    directory: str, figure: str | None, kind: str | None, dpi: int, size: str | None, output: str | None, every: bool, force: bool, as_json: bool, debug: bool
) -> None:  # fmt: skip
    """Draw FIGURE of RUN again from its stored tables; without FIGURE, list what there is.

    FIGURE is ANALYSIS/NAME, or NAME where one analysis has it.

    \b
      codi-engine plot runs/demo
      codi-engine plot runs/demo importance/heatmap -o figure1.pdf --size 3.5x2.6
      codi-engine plot runs/demo --all --format svg -o figures
    """
    from codi_engine.core.runs.resizing import parse_size

    wanted = parse_size(size) if size else None
    if figure is None and not every:
        _listed(directory, as_json)
        return
    if figure is not None and every:
        raise click.UsageError("give a FIGURE, or --all")
    kind = kind or _ending(output, every) or "pdf"
    written = _all(directory, kind, dpi, wanted, Path(output or "."), force) if every else [_one(directory, str(figure), kind, dpi, wanted, output, force)]
    _said(written, as_json)


def _ending(output: str | None, every: bool) -> str | None:
    """Return the format that a file's name asks for."""
    if output is None or every:
        return None
    ending = Path(output).suffix[1:].lower()
    if ending and ending not in ("pdf", "svg", "png"):
        raise click.UsageError(f"-o {output}: figures are written as .pdf, .svg or .png")
    return ending or None


def _listed(directory: str, as_json: bool) -> None:
    from codi_engine.cli import show
    from codi_engine.core.runs.drawing import figure_names
    from codi_engine.core.runs.stored import results_home
    from codi_engine.core.text import json_shown

    known = figure_names(results_home(directory))
    if as_json:
        click.echo(json_shown(known))
        return
    rows = [(f"{analysis}/{name}", str(Path(directory) / "results" / analysis / f"{name}.png")) for analysis, names in known.items() for name in names]
    show.table(rows or [("no figures yet", f"codi-engine analyze {directory}")])


def _one(directory: str, figure: str, kind: str, dpi: int, size: tuple[float, float] | None, output: str | None, force: bool) -> Path:
    from codi_engine.core.runs.drawing import find
    from codi_engine.core.runs.drawing import plot as drawn
    from codi_engine.core.runs.stored import results_home

    home = results_home(directory)
    made = drawn(home, "/".join(find(home, figure)), size=size)
    path = Path(output) if output else Path(f"{figure.rpartition('/')[2]}.{kind}")
    return _write(made, path if path.suffix else path.with_suffix(f".{kind}"), kind, dpi, force)


def _all(directory: str, kind: str, dpi: int, size: tuple[float, float] | None, folder: Path, force: bool) -> list[Path]:
    from codi_engine.core.runs.drawing import redraw
    from codi_engine.core.runs.resizing import resize
    from codi_engine.core.runs.stored import results_home, stored_results

    written = []
    for analysis, stored in stored_results(results_home(directory)).items():
        for name, made in redraw(stored).items() if stored.figures else ():
            if size is not None:
                resize(made, *size)
            written.append(_write(made, folder / f"{analysis}-{name}.{kind}", kind, dpi, force))
    return written


def _write(made: Figure, path: Path, kind: str, dpi: int, force: bool) -> Path:
    from codi_engine.core.runs.drawing import save
    from codi_engine.core.runs.whole import whole_file

    with whole_file(path, force) as part:
        save(made, part, kind, dpi)
    return path


def _said(written: list[Path], as_json: bool) -> None:
    from codi_engine.cli import show
    from codi_engine.core.text import json_shown

    if as_json:
        click.echo(json_shown([str(path) for path in written]))
    else:
        show.table([("written", str(path)) for path in written] or [("no figures", "")])
