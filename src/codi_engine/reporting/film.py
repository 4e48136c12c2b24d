"""The latent film: what each latent says through the unembedding, unedited and edited one under the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import CodiEngineError
from codi_engine.core.planning.controls import is_control
from codi_engine.core.runs.results import BASELINE
from codi_engine.reporting.section import Section, environment
from codi_engine.reporting.text import texts_of, visible

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.stored import StoredResult

#: examples, edited places of each, and frames in all that a page holds
EXAMPLES, PLACES, FRAMES = 50, 400, 12_000
#: tokens of a frame
RANKS = 5
TABLE = "film"
_NEEDED = ("example", "condition", "step", "rank", "token", "probability")
#: columns that name the prompt; every ``edited_<axis>`` names where it was edited
_PROMPT = ("example", "variant")
_EDITED = "edited_"


@dataclass(frozen=True)
class Film:
    """One result's film, ready for the page.

    Attributes
    ----------
    data: ``tokens`` (texts), ``examples`` (label, question, answer, base strip, edits: label, answer, step, strip); a strip is
        a list of (step, [token number, per mille …])
    said: what was left out
    """

    name: str
    data: Mapping[str, Any]
    said: Sequence[str]


def section(run: Run) -> Section | None:
    """Return the latent films of every stored result that has a table ``film``; None where there is none."""
    from markupsafe import Markup

    films = [made for result in run.results.values() if TABLE in result.tables and (made := film(run, result)) is not None]
    if not films:
        return None
    templates = environment()
    templates.filters.update(cut=visible)
    return Section("film", "Latent film", Markup(templates.get_template("film.html").render(films=films)))


def film(run: Run, result: StoredResult) -> Film | None:
    """Return one result's film; None where its table has no row."""
    table = result.table(TABLE)
    missing = [c for c in _NEEDED if c not in table]
    if missing:
        return Film(result.name, {"tokens": [], "examples": []}, [f"its table 'film' lacks {', '.join(missing)}, so it cannot be shown"])
    table = table[(table["rank"] <= RANKS) & ~table["condition"].map(is_control)]
    if not len(table):
        return None
    prompts = [c for c in _PROMPT if c in table]
    places = [str(c) for c in table if str(c).startswith(_EDITED)]
    said = [] if result.is_of(run.digest) else [f"made before the run grew; codi-engine analyze {run.path} {result.name} brings it up to date"]
    shown, left_out = _bounded(table, prompts, places)
    tokens: dict[str, int] = {}
    cells = _Cells(run, prompts, places, [str(e) for e in shown["example"].unique()])
    questions = _questions(run)
    examples = [_example(key, part, places, tokens, cells, questions) for key, part in shown.groupby(prompts, sort=False, dropna=False)]
    _with_answers(examples, run)
    if not any(e["question"] for e in examples):
        said.append("the questions are not shown: the data is not here, or has changed since")
    return Film(result.name, {"tokens": [visible(t, 40) for t in tokens], "examples": examples}, [*said, *left_out])


def _bounded(table: pd.DataFrame, prompts: list[str], places: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of as many whole examples as a page holds."""
    import pandas as pd

    groups = [part for _, part in table.groupby(prompts, sort=False, dropna=False)]
    kept: list[pd.DataFrame] = []
    said: list[str] = []
    room = FRAMES
    for part in groups[:EXAMPLES]:
        strip = part.groupby(["condition", *places], sort=False, dropna=False).ngroup().to_numpy()
        own = part[(strip <= PLACES) | (part["condition"] == BASELINE).to_numpy()]
        if strip.max() > PLACES and not said:
            said.append(f"{PLACES} of {int(strip.max()):,} edited places of each example are shown")
        frames = own.groupby(["condition", *places, "step"], sort=False, dropna=False).ngroups
        if kept and frames > room:
            break
        kept.append(own)
        room -= frames
    if len(kept) < len(groups):
        said.append(f"{len(kept):,} of {len(groups):,} examples are shown")
    return pd.concat(kept), said


def _example(key: Any, part: pd.DataFrame, places: list[str], tokens: dict[str, int], cells: _Cells, questions: Mapping[Any, str]) -> dict[str, Any]:
    names = tuple(str(v) for v in (key if isinstance(key, tuple) else (key,)))
    variant = names[1] if len(names) > 1 else "main"
    base = part[part["condition"] == BASELINE]
    edited = part[part["condition"] != BASELINE]
    edits = [_edit(k, p, places, tokens, cells, names) for k, p in edited.groupby(["condition", *places], sort=False, dropna=False)]
    return {
        "label": visible(names[0] if variant == "main" else " · ".join(names), 100), "question": visible(questions.get((names[0], variant), ""), 1500),
        "answer": cells.slot(names, BASELINE, {}), "strip": _strip(base, tokens), "edits": edits,
    }  # fmt: skip


def _edit(key: Any, part: pd.DataFrame, places: list[str], tokens: dict[str, int], cells: _Cells, names: tuple[str, ...]) -> dict[str, Any]:
    condition, *values = key if isinstance(key, tuple) else (key,)
    where = [(c.removeprefix(_EDITED), _plain(v)) for c, v in zip(places, values, strict=True) if not _absent(v)]
    step = next((int(v) for axis, v in where if axis == "step" and str(v).lstrip("-").isdigit()), None)
    label = ", ".join([str(condition), *(f"{axis} {v}" for axis, v in where)])
    answer = cells.slot(names, str(condition), {axis: str(v) for axis, v in where})
    return {"label": visible(label, 160), "answer": answer, "step": step, "strip": _strip(part, tokens)}


def _plain(value: Any) -> Any:
    """Return 3 for 3.0: a column with gaps may come back as numbers with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _absent(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or value != value


def _strip(part: pd.DataFrame, tokens: dict[str, int]) -> list[Any]:
    """Return (step, [token number, per mille, …]) in the order of steps and ranks; several draws of one place: the first of them."""
    ordered = part.sort_values(["step", "rank"], kind="stable").drop_duplicates(["step", "rank"])
    out: list[Any] = []
    step: Any
    for step, frame in ordered.groupby("step", sort=True):
        pairs = zip(frame["token"].astype(str), np.nan_to_num(frame["probability"].to_numpy(float)), strict=True)
        out.append([int(step), [v for token, p in pairs for v in (tokens.setdefault(token, len(tokens)), round(1000 * float(p)))]])
    return out


# ------------------------------------------------------------------------------------- questions and answers


def _questions(run: Run) -> dict[tuple[str, str], str]:
    """Return (example, variant) → question: a run keeps none, so its data are read again where they are the same still."""
    from codi_engine.core.runs.reload import reload_data

    try:
        data = reload_data(run)
    except (CodiEngineError, OSError):
        return {}
    return {(str(e.id), variant): p.text for e in (*data.pool, *data.examples) for variant, p in e.prompts.items()}


class _Cells:
    """Which cell a strip is of, and their generated texts, read all at once."""

    def __init__(self, run: Run, prompts: list[str], places: list[str], examples: Sequence[str]) -> None:
        self._run = run
        self._prompts = [a for a in prompts if a in run.axes]
        axes = [*self._prompts, *(a for a in (p.removeprefix(_EDITED) for p in places) if a in run.axes)]
        self._axes = ["condition", *axes]
        self._labels = {a: {str(v): i for i, v in enumerate(run.store.labels(a))} for a in self._axes}
        wanted = [self._labels["example"].get(e, -2) for e in examples] if "example" in self._labels else []
        rows = np.flatnonzero(np.isin(run.store.codes("example"), wanted)) if wanted else np.zeros(0, np.int64)
        codes = np.stack([run.store.codes(a)[rows] for a in self._axes], 1).tolist()
        base, self._cells = self._labels["condition"].get(BASELINE, -2), dict[tuple[int, ...], int]()
        for code, slot in zip(codes, run.store.slots[rows].tolist(), strict=True):
            unedited = code[0] == base  # has no place, but may have a trial
            self._cells.setdefault(tuple(code[: 1 + len(self._prompts)] if unedited else code), slot)

    def slot(self, names: Sequence[str], condition: str, place: Mapping[str, str]) -> int:
        """Return the cell of a prompt, condition and place (its first draw where it is unedited); −1 where there is none."""
        wanted = {"condition": condition, **dict(zip(self._prompts, names, strict=False)), **place}
        axes = self._axes[: 1 + len(self._prompts)] if condition == BASELINE else self._axes
        return self._cells.get(tuple(self._labels[a].get(wanted[a], -2) if a in wanted else -1 for a in axes), -1)


def _with_answers(examples: list[dict[str, Any]], run: Run) -> list[dict[str, Any]]:
    """Put the text of each cell in the place of its slot."""
    every = [one for e in examples for one in (e, *e["edits"])]
    texts = texts_of(run, (one["answer"] for one in every if one["answer"] >= 0))
    for one in every:
        one["answer"] = visible(texts.get(one["answer"], ""), 500)
    return examples
