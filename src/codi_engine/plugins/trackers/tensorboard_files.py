"""TensorBoard: event files in the run's directory; no server and no network."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Event, NoOptions, Tracker
from codi_engine.core.text import markdown
from codi_engine.plugins.trackers.places import effects_of, pictures, plain

if TYPE_CHECKING:
    import pandas as pd

#: the folder in the run's directory
FOLDER = "tensorboard"
#: rows of the table of effects that are shown
ROWS = 500


class TensorBoard(Tracker[NoOptions]):
    """Write scalars over committed cells, events, figures, the table of effects and the experiment for TensorBoard.

    The files are in ``tensorboard/`` of the run: ``tensorboard --logdir runs``. Needs ``pip install 'codi-engine[tensorboard]'``.
    """

    name = "tensorboard"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        super().__init__(options)
        self._writer: Any = None
        self._step = 0
        self._folders: dict[str, Path] = {}

    def check(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("tensorboard is not installed: pip install 'codi-engine[tensorboard]'")

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        import yaml
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run / FOLDER), flush_secs=5)
        self._text("experiment", _code(yaml.safe_dump(dict(experiment), sort_keys=False, allow_unicode=True)))

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        self._step = max(self._step, int(aggregates.get("cells", unit + 1)))
        if self._writer is None:
            return
        for name, value in aggregates.items():
            if "/" in name or name in ("cells_per_second", "memory_bytes"):
                self._writer.add_scalar(f"mean/{name}" if "/" in name else f"run/{name}", value, self._step)

    def event(self, event: Event) -> None:
        self._text("events", f"{event.time} **{event.kind}**: {markdown(event.text)}")

    def analysed(self, name: str, folder: Path) -> None:
        self._folders[name] = folder

    def finished(self, run: Path, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        if self._writer is None:
            return
        from codi_engine.core.runs.results import open_run
        from codi_engine.store.provenance import read_provenance

        facts = {k: v for k, v in read_provenance(run).items() if isinstance(v, (str, int, float, dict)) and k != "cost"}
        self._text("provenance", _code("\n".join(f"{k}: {v}" for k, v in facts.items())))
        for name, path in pictures(self._folders, figures).items():
            self._writer.add_image(f"figures/{name}", _pixels(path), self._step, dataformats="HWC")
        opened = open_run(run)
        if opened.metrics:
            self._text("effects", _markdown(effects_of(opened).places))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        if self._writer is not None:
            self._writer.add_text(tag, text, self._step)


def _code(text: str) -> str:
    """Return text as a code block of Markdown."""
    return "\n".join("    " + line for line in text.splitlines())


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown, its first :data:`ROWS` rows."""
    head = [markdown(c) for c in table]
    rows = [[_cell(v) for v in row] for row in table.head(ROWS).itertuples(index=False)]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    left = len(table) - ROWS
    return "\n".join(lines) + (f"\n\n{left:,} more rows are left out" if left > 0 else "")


def _cell(value: Any) -> str:
    value = plain(value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else markdown(value)
