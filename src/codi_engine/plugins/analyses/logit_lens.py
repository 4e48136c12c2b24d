"""``logit_lens``: what hidden states say when the model's own last norm and unembedding read them (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, Options

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.lens_tables import Lensed
    from codi_engine.plugins.analyses.readout import Readout
    from codi_engine.plugins.analyses.sought import Sought
    from codi_engine.plugins.analyses.states import States

#: rows (cells × pairs) of one part
_ROWS = 1 << 15
#: rows of the table of examples
_EXAMPLE_ROWS = 2_000_000


class LogitLensOptions(Options):
    """``site``: which states (default: the captured residual stream, else ``latent_out``). ``edited``: those of edited cells.

    ``steps``: the data's field with annotated solutions (``<<6*2=12>>``). ``spelling``: a number's token as the model writes
    answers, ``bare`` (as after ``=``), or the better of ``both``. ``top``: tokens listed per place, and the rank up to which
    a value counts as read. ``q``, ``correction``: of the tests of values. ``confidence``: of intervals. ``memory``: GB.
    """

    site: str | None = None
    edited: bool = False
    steps: str = "steps"
    spelling: Literal["answer", "bare", "both"] = "answer"
    top: int = Field(default=5, ge=1, le=1000)
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni"] = "bh"
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    memory: float = Field(default=2.0, gt=0.0)


@dataclass(frozen=True)
class _Part:
    """Some cells."""

    first: int
    last: int
    bytes: int

    @property
    def key(self) -> str:
        return f"{self.first}-{self.last}"


class LogitLens(Analysis[LogitLensOptions]):
    """The logit lens per layer and latent step: rank of the answer and of intermediate results, entropy, first tokens.

    Loads the run's model again, which must be the same one. Nothing is trained: a layer that writes in another basis than
    the last one looks empty to this lens (Belrose et al. 2023 train a translator per layer, the tuned lens).
    """

    name = "logit_lens"
    Options = LogitLensOptions

    def check(self, facts: Foreseen) -> None:
        from codi_engine.core.sites import parse_site
        from codi_engine.plugins.analyses.readout import NORMED, RESIDUAL

        readable = (*RESIDUAL, *NORMED)
        if self.options.site is not None:
            component = parse_site(self.options.site, "site").component
            if component not in readable:
                raise UserError(f"site: {component} is not the residual stream; capture and name one of {', '.join(readable)}")
        elif facts.captures and not any(name.split("@")[0].split(".")[0] in readable for name in facts.captures):
            raise UserError("the run holds no states of the residual stream; add capture: [resid_post@latent] to the experiment")
        facts.need_capture(self.options.site, "resid_post@latent")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.core.rollout.network import Network
        from codi_engine.core.running.reading import Answers
        from codi_engine.core.runs.reload import gold_answers, reload_data, reload_model
        from codi_engine.plugins.analyses import lens_summary, lens_tables
        from codi_engine.plugins.analyses.readout import NORMED, Readout, Spelling, Texts
        from codi_engine.plugins.analyses.sought import seek
        from codi_engine.plugins.analyses.states import States

        run, options = runs[0], self.options
        site = self._site(run)
        states = States(run, site, options.edited, self.name)
        gold = gold_answers(reload_data(run))
        work.progress.start("loading the model", 0, "")
        adapter = reload_model(run)
        if states.width != adapter.info.width:
            raise UserError(f"{self.name}: {states.name} has width {states.width}; the model's residual stream has {adapter.info.width}")
        prefix = (run.experiment.get("generate") or {}).get("answer_prefix")
        spelling = Spelling(Answers(adapter, prefix), options.spelling)
        sought = seek(states.frame, gold, options.steps, spelling)
        work.threads = 1  # torch computes in parallel by itself
        normed = states.site is not None and states.site.component in NORMED
        readout = Readout(Network(adapter), normed, options.top, work.memory // 2)
        read = self._lensed(states, sought, readout, work)
        text = Texts(adapter)
        tables = {
            "lens": lens_tables.lens_table(states, read, sought, options),
            "intermediate": lens_tables.value_table(states, read, sought, options),
            "tokens": lens_tables.token_table(states, read, text, options.top),
        }
        if read.entropy.size <= _EXAMPLE_ROWS:
            tables["examples"] = lens_tables.example_table(states, read, text)
        else:
            sought.notes.append(f"no table of examples: it would have {read.entropy.size:,} rows; name fewer places with site")
        return AnalysisResult(tables, summary=lens_summary.summary(tables, states, sought, options), facts=states.facts())

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import lens_figures
        from codi_engine.plugins.analyses.place_figures import Places

        return lens_figures.draw(tables, Places(**about["facts"]), self.options, about["title"])

    def _site(self, run: Run) -> str:
        """Return the site asked for, or the best of those captured; only what can be read by the last norm."""
        from codi_engine.core.sites import parse_site
        from codi_engine.plugins.analyses.readout import NORMED, RESIDUAL

        readable = (*RESIDUAL, *NORMED)
        if self.options.site is not None:
            component = parse_site(self.options.site, f"{self.name}: site").component
            if component not in readable:
                raise UserError(f"{self.name}: {component} is not the residual stream; capture and name one of {', '.join(readable)}")
            return self.options.site
        known = list(dict.fromkeys(a.split("/")[1] for a in run.store.arrays if a.startswith("activations/")))
        found = [n for c in readable for n in sorted(known, key=len) if n.split("@")[0].split(".")[0] == c and not run.store.is_sparse(f"activations/{n}")]
        if not found:
            raise UserError(f"{self.name}: {run.path} holds no states of the residual stream; add capture: [resid_post@latent] and run it again")
        latent = [n for n in found if n.endswith("@latent") or n == "latent_out" or "@" not in n]
        return (latent or found)[0]

    def _lensed(self, states: States, sought: Sought, readout: Readout, work: Work) -> Lensed:
        """Read all cells, part by part."""
        from codi_engine.plugins.analyses.lens_tables import Lensed

        options = self.options.model_dump(exclude={"memory"})
        identity = {"analysis": self.name, "run": states.run.digest, "site": str(states.site), "options": options}
        work.begin(identity)
        pairs = states.shape[0] * states.shape[1]
        size = max(min(work.piece // max(states.bytes_per_cell, 1), _ROWS // pairs), 1)
        count = len(states.frame)
        parts = [_Part(a, min(a + size, count), states.bytes_per_cell * (min(a + size, count) - a)) for a in range(0, count, size)]
        done = list(
            work.stream("lens", parts, lambda p, _: states.read(np.arange(p.first, p.last)), lambda p, x: _read(p, x, sought, readout))
        )  # fmt: skip
        return Lensed(*(np.concatenate([d[n] for d in done]) for n in ("rank", "chance", "prob", "entropy", "top")))


def _read(part: _Part, values: np.ndarray, sought: Sought, readout: Readout) -> dict[str, np.ndarray]:
    """Read pairs × cells × width and return cells × pairs × … of what was found."""
    pairs, count, _ = values.shape
    cells = np.tile(np.arange(part.first, part.last), pairs)
    read = readout.read(values.reshape(pairs * count, -1), sought.tokens[cells], sought.candidates)
    chance = np.stack([sought.chance(v, hits, cells) for v, hits in enumerate(read.hits)], 1)
    chance[np.isnan(read.rank)] = np.nan
    flat = {"rank": read.rank, "chance": chance, "prob": read.prob[:, -1], "entropy": read.entropy, "top": read.top}
    return {n: np.ascontiguousarray(np.swapaxes(v.reshape(pairs, count, *v.shape[1:]), 0, 1)) for n, v in flat.items()}
