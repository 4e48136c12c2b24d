"""Calls of plugins whose result is checked as it comes back: what fails or does not fit names package, plugin and method."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.calling import calling, wrong
from codi_engine.core.naming import RESERVED
from codi_engine.store.layout import PARTIAL

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from codi_engine.core.model import ModelAdapter, ModelInfo
    from codi_engine.core.plugin import Analysis, AnalysisResult, Data, Dataset, Example, Intervention, Metric, Model, Readings, Rows, SaeFormat
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.core.sae import SAE
    from codi_engine.core.sites import Phase

#: columns of cells that the engine writes
TAKEN = frozenset(
    {"example", "condition", "variant", "trial", "donor", "layer", "step", "position", "head", "answer", "answer_rule", "text", "key", "stage", "nonfinite"}
)
_COLUMN = re.compile(r"\w[\w.=+-]*")
#: files that the engine writes beside an analysis' own
OWN = ("result.json", "summary.txt")
#: bytes of a name, an ending and a temporary one included in what systems allow (255)
LONGEST_NAME = 200
PHASES = ("prompt", "latent", "answer")
#: the prompts that an example of each kind of data has
VARIANTS = {"problems": {"main"}, "prompts": {"main"}, "pairs": {"clean", "corrupted"}}


def described(model: Model[Any]) -> ModelInfo:
    """Return what a model says of itself without its weights."""
    from codi_engine.core.model import ModelInfo

    with calling(model, "describe"):
        info = model.describe()
    if not isinstance(info, ModelInfo):
        raise wrong(model, "describe", f"must return a ModelInfo; it returned {_what(info)}")
    return info


def loaded_model(model: Model[Any]) -> ModelAdapter:
    """Return a model's network and tokenizer functions."""
    from codi_engine.core.model import ModelAdapter

    with calling(model, "load"):
        adapter = model.load()
    if not isinstance(adapter, ModelAdapter):
        raise wrong(model, "load", f"must return a ModelAdapter; it returned {_what(adapter)}")
    return adapter


def loaded(dataset: Dataset[Any]) -> Data:
    """Return a data set's examples: of a known kind, each with its prompts and an id of its own."""
    from codi_engine.core.plugin import Data

    with calling(dataset, "load"):
        data = dataset.load()
    if not isinstance(data, Data):
        raise wrong(dataset, "load", f"must return a Data; it returned {_what(data)}")
    if data.kind not in VARIANTS:
        raise wrong(dataset, "load", f"returned data of kind {data.kind!r}; known: {', '.join(VARIANTS)}")
    if not data.examples:
        raise wrong(dataset, "load", "returned no examples", defect=False)
    for name, examples in (("examples", data.examples), ("pool", data.pool)):
        unlike = next((said for e in examples if (said := _unlike(e))), None)
        if unlike is not None:
            raise wrong(dataset, "load", f"returned {unlike}", defect=False)
        twice = next((i for i, n in Counter(e.id for e in examples).items() if n > 1), None)
        if twice is not None:
            raise wrong(dataset, "load", f"returned two {name} with the id {twice!r}")
        unfit = next((e for e in examples if set(e.prompts) != VARIANTS[data.kind]), None)
        if unfit is not None:
            raise wrong(
                dataset, "load", f"returned example {unfit.id!r} with the prompts {sorted(unfit.prompts)}; {data.kind} have {sorted(VARIANTS[data.kind])}"
            )
    return data


def _unlike(example: Example) -> str:
    """Say what is wrong with an example's id, questions or answers; empty where nothing is."""
    if not isinstance(example.id, str) or not example.id:
        return f"an example with the id {example.id!r}; ids are text"
    for variant, prompt in example.prompts.items():
        if not isinstance(prompt.text, str):
            return f"example '{example.id}', whose {variant} text is {_what(prompt.text)}"
        answer = prompt.answer
        if answer is not None and (isinstance(answer, bool) or not isinstance(answer, (int, float)) or not math.isfinite(answer)):
            return f"example '{example.id}', whose {variant} answer is {answer!r}; write a finite number, or None where there is no answer"
    return ""


class Unsettled:
    """Values of a batch that are still to be looked at: on a GPU each look would wait for all work before it, so there is one a batch."""

    def __init__(self) -> None:
        self._flags: list[torch.Tensor] = []
        self._about: list[tuple[Intervention[Any], Rows, str]] = []

    def add(self, flags: torch.Tensor, intervention: Intervention[Any], rows: Rows, at: str) -> None:
        """Take in which rows of a call are not finite; the values themselves are not kept."""
        import dataclasses

        self._flags.append(flags)
        self._about.append((intervention, dataclasses.replace(rows, values=rows.values[:0], source=None, scale=None, draws=None), at))

    def settle(self) -> None:
        """Look at all of them, once.

        Raises
        ------
        PluginError: an intervention returned values that are not finite
        """
        import torch

        if not self._flags:
            return
        flags, about = self._flags, self._about
        self._flags, self._about = [], []
        made = torch.split(torch.cat(flags).cpu(), [len(f) for f in flags])
        for rows_made, (intervention, rows, at) in zip(made, about, strict=True):
            if rows_made.any():
                _refuse(intervention, rows, rows_made.nonzero().flatten().tolist(), len(rows_made), at)


def applied(intervention: Intervention[Any], rows: Rows, unsettled: Unsettled | None = None) -> torch.Tensor:
    """Return an intervention's new values: a tensor of the same shape, type and device, finite where the model's own values are.

    ``unsettled``: where the look at values on a GPU is put off to.
    """
    import torch

    old = rows.values
    with calling(intervention, "apply"):
        new = intervention.apply(rows)
    at = f"at {rows.site}{'' if rows.layer is None else f'.{rows.layer}'}@{rows.phase}[{rows.place}]"
    if not isinstance(new, torch.Tensor):
        raise wrong(intervention, "apply", f"must return a tensor; it returned {_what(new)} {at}")
    if new.shape != old.shape or new.dtype != old.dtype:
        raise wrong(intervention, "apply", f"returned {list(new.shape)} {new.dtype} for {list(old.shape)} {old.dtype} {at}")
    if new.device != old.device:
        raise wrong(intervention, "apply", f"returned a tensor on {new.device} for one on {old.device} {at}")
    if unsettled is not None and new.device.type != "cpu":
        unsettled.add(_made(rows, new), intervention, rows, at)
    elif not math.isfinite(float(new.sum())):  # cheap, and never finite where a value is not; that a sum overflows is sorted out below
        made = _made(rows, new).nonzero().flatten().tolist()
        if made:
            _refuse(intervention, rows, made, len(new), at)
    return new


def _made(rows: Rows, new: torch.Tensor) -> torch.Tensor:
    """Return which rows are not finite although the model's own values and the source's are: a model's own overflow passes."""
    import torch

    made = torch.isfinite(rows.values).all(dim=-1) & ~torch.isfinite(new).all(dim=-1)
    return made if rows.source is None else made & torch.isfinite(rows.source).all(dim=-1)


def _refuse(intervention: Intervention[Any], rows: Rows, made: Sequence[int], count: int, at: str) -> None:
    """Refuse values that are not finite, naming the first cell."""
    examples = rows.labels.get("example", ())
    who = f" for example '{examples[made[0]]}'" if len(examples) else ""
    given = ", ".join(f"{k} {v}" for k, v in intervention.options.model_dump(exclude_none=True).items())
    said = f" with {given[:160]}" if given else ""
    raise wrong(intervention, "apply", f"returned NaN or infinite values {at}{who} ({len(made)} of {count} rows){said}", defect=False)


def edited_places(intervention: Intervention[Any], phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
    """Return where an intervention edits a cell that addresses these places, by phase."""
    with calling(intervention, "edits"):
        found = intervention.edits(phase, places, latents)
        known = isinstance(found, Mapping) and all(p in PHASES and all(isinstance(x, int) for x in at) for p, at in found.items())
    if not known:
        raise wrong(
            intervention, "edits", f"must return phase → places, such as {{'latent': [0, 2]}}, of the phases {', '.join(PHASES)}; it returned {found!r:.80}"
        )
    return found


def neutral_of(intervention: Intervention[Any]) -> Intervention[Any] | None:
    """Return the same intervention with options that change nothing, where it has such."""
    with calling(intervention, "neutral"):
        found = intervention.neutral()
    if found is not None and not isinstance(found, type(intervention)):
        raise wrong(intervention, "neutral", f"must return a {type(intervention).__name__} or None; it returned {_what(found)}")
    return found


def columns_of(metric: Metric[Any]) -> Sequence[str]:
    """Return the names of a metric's columns."""
    with calling(metric, "columns"):
        columns = metric.columns()
    if isinstance(columns, str) or not all(isinstance(c, str) and c for c in columns) or len(set(columns)) != len(columns) or not columns:
        raise wrong(metric, "columns", f"must return names, each once; it returned {columns!r}")
    unfit = next((c for c in columns if c in TAKEN or not _COLUMN.fullmatch(c)), None)
    if unfit is not None:
        said = "is a column of every run already" if unfit in TAKEN else "must be letters, digits and . _ - + ="
        raise wrong(metric, "columns", f"names '{unfit}', which {said}; call it otherwise")
    return columns


def measured(metric: Metric[Any], read: Readings) -> Mapping[str, np.ndarray]:
    """Return a metric's columns: those that it names, one number per row."""
    import numpy as np

    with calling(metric, "measure"):
        found = metric.measure(read)
    if not isinstance(found, Mapping):
        raise wrong(metric, "measure", f"must return column → values, such as {{'{metric.name}': …}}; it returned {_what(found)}")
    with calling(metric, "measure"):
        values = dict(found)
        arrays = {column: np.asarray(v, np.float64) for column, v in values.items()}
    named = columns_of(metric)
    if set(arrays) != set(named):
        raise wrong(metric, "measure", f"returned the columns {', '.join(map(str, arrays)) or 'none'}; columns() names {', '.join(named)}")
    for column, array in arrays.items():
        if array.shape != read.gold.shape:
            raise wrong(metric, "measure", f"returned shape {list(array.shape)} for {len(read.gold)} rows in column '{column}'")
    return {column: arrays[column] for column in values}


def analysed(analysis: Analysis[Any], runs: Sequence[Run], work: Work) -> AnalysisResult:
    """Return an analysis' tables, figures, files and summary."""
    import pandas as pd

    from codi_engine.core.plugin import AnalysisResult

    with calling(analysis, "analyze"):
        result = analysis.analyze(runs, work)
    if not isinstance(result, AnalysisResult):
        raise wrong(analysis, "analyze", f"must return an AnalysisResult; it returned {_what(result)}")
    for name, table in result.tables.items():
        if not isinstance(table, pd.DataFrame):
            raise wrong(analysis, "analyze", f"must return DataFrames as tables; '{name}' is {_what(table)}")
    _check_figures(analysis, "analyze", result.figures)
    if not isinstance(result.summary, str) or not all(isinstance(t, (str, bytes)) for t in result.files.values()):
        raise wrong(analysis, "analyze", "must return its summary as text and its files as text or bytes")
    _check_names(analysis, "analyze", result.tables)
    _check_names(analysis, "analyze", [*OWN, *(f"{name}.parquet" for name in result.tables), *result.files, *(f"{name}.png" for name in result.figures)])
    return result


def figures_of(analysis: Analysis[Any], tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures that an analysis draws from its stored tables."""
    with calling(analysis, "draw"):
        figures = dict(analysis.draw(tables, about))
    _check_figures(analysis, "draw", figures)
    return figures


def _check_figures(analysis: Analysis[Any], method: str, figures: Mapping[str, Any]) -> None:
    for name, figure in figures.items():
        if not hasattr(figure, "savefig"):
            raise wrong(analysis, method, f"must return matplotlib figures; '{name}' is {_what(figure)}")
    _check_names(analysis, method, figures)


def _check_names(analysis: Analysis[Any], method: str, names: Iterable[Any]) -> None:
    """Refuse names that leave the folder, that some system has not, or two that are one where upper and lower case are."""
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name or name != name.strip() or any(c in '/\\:*?"<>|' for c in name) or not name.isprintable():
            raise wrong(analysis, method, f"returned {_cut(name)} as a name; tables, figures and files are named as files are")
        if name.startswith(".") or name.endswith((".", PARTIAL)) or name.split(".")[0].upper() in RESERVED or len(name.encode()) > LONGEST_NAME:
            raise wrong(
                analysis, method, f"returned {_cut(name)} as a name, which files cannot have everywhere (at most {LONGEST_NAME} bytes, no dot at its ends)"
            )
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise wrong(analysis, method, f"returned {_cut(name)} beside {_cut(seen[folded])}: both would be the same file; call one otherwise")
        seen[folded] = name


def _cut(name: object) -> str:
    shown = repr(name)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"


def knows(reader: SaeFormat, place: Path) -> bool:
    """Return whether a format says that a file or directory is its own."""
    with calling(reader, "matches"):
        return bool(reader.matches(place))


def read_sae(reader: SaeFormat, place: Path) -> SAE:
    """Return the autoencoder of a file or directory."""
    from codi_engine.core.sae import SAE

    with calling(reader, "read"):
        sae = reader.read(place)
    if not isinstance(sae, SAE):
        raise wrong(reader, "read", f"must return an SAE; it returned {_what(sae)}")
    return sae


def _what(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
