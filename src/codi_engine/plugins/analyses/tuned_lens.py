"""``tuned_lens``: a lens with one affine translator per layer and latent step, trained on the run's own states (Belrose et al. 2023)."""

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

    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.readout import Read, Readout
    from codi_engine.plugins.analyses.sought import Sought
    from codi_engine.plugins.analyses.states import States
    from codi_engine.plugins.analyses.tuned_targets import Goal

#: fewer groups than this cannot be divided into training, choice of the penalty and test
_LEAST_GROUPS = 12
#: bytes of logits that are held at once; fixed, because sums over batches decide the translators' bits
_LOGITS = 1 << 29
#: share of the training groups on which the penalty is chosen
_CHECK = 0.2


class TunedLensOptions(Options):
    """``site``: which captured states of the residual stream at latent steps. ``target``: what their readout is to be.

    ``latent``: what the model's last layer says at the same step; ``answer``: the distribution where the answer's number is predicted.
    ``holdout``: share of the groups that is never trained on; ``groups``: a field whose values are not split (default: the example).
    ``penalties``: on the translator's size, chosen inside the training groups. ``epochs``: L-BFGS iterations per penalty.
    ``top``: tokens listed per place. ``steps``, ``spelling``: as for ``logit_lens``. ``save``: write ``translators.safetensors``.
    ``q``, ``correction``: of the tests. ``confidence``: of intervals. ``seed``: of the division. ``memory``: GB.
    """

    site: str = "resid_post@latent"
    target: Literal["latent", "answer"] = "latent"
    holdout: float = Field(default=0.25, gt=0.0, lt=0.9)
    groups: str | None = None
    penalties: list[float] = Field(default=[1.0, 0.1, 0.01, 0.001], min_length=1)
    epochs: int = Field(default=20, ge=1)
    top: int = Field(default=5, ge=1, le=1000)
    steps: str = "steps"
    spelling: Literal["answer", "bare", "both"] = "answer"
    save: bool = True
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni"] = "bh"
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0)
    memory: float = Field(default=2.0, gt=0.0)


@dataclass(frozen=True)
class _Part:
    """One layer and step."""

    number: int
    bytes: int

    @property
    def key(self) -> str:
        return str(self.number)


@dataclass(frozen=True)
class Division:
    """Rows of the frame: trained on, for the choice of the penalty, and held out; no group is in two of them."""

    train: np.ndarray
    check: np.ndarray
    held: np.ndarray


def divide(groups: np.ndarray, holdout: float, seed: int) -> Division:
    """Divide rows by their groups, drawn with a seed; each part has one group at least."""
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    held = min(max(round(holdout * len(order)), 1), len(order) - 2)
    check = max(round(_CHECK * (len(order) - held)), 1)
    parts = (order[held + check :], order[held : held + check], order[:held])
    return Division(*(np.flatnonzero(np.isin(groups, part)) for part in parts))


class TunedLens(Analysis[TunedLensOptions]):
    """A tuned lens per layer and latent step: h + A·h + b, then the model's own last norm and unembedding (Belrose et al. 2303.08112).

    A and b are trained on unedited states so that the readout of ``resid_post.l@latent[k]`` has the least KL divergence from the
    target's distribution. Tables and tests are of held-out examples, beside the plain logit lens. Loads the run's model again.
    """

    name = "tuned_lens"
    Options = TunedLensOptions

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.core.rollout.network import Network
        from codi_engine.core.running.reading import Answers
        from codi_engine.core.runs.reload import gold_answers, reload_data, reload_model
        from codi_engine.plugins.analyses import tuned_tables
        from codi_engine.plugins.analyses.readout import Readout, Spelling, Texts
        from codi_engine.plugins.analyses.sought import seek
        from codi_engine.plugins.analyses.states import States
        from codi_engine.plugins.analyses.targets import groups_of
        from codi_engine.plugins.analyses.tuned_targets import goal

        run, options = runs[0], self.options
        self._check(run)
        states = States(run, options.site, False, self.name)
        groups = groups_of(states.frame, options.groups, f"{self.name}: groups")
        if len(np.unique(groups)) < _LEAST_GROUPS:
            raise UserError(f"{self.name}: {len(np.unique(groups))} groups ({options.groups or 'example'}) are too few; it needs {_LEAST_GROUPS} or more")
        division = divide(groups, options.holdout, options.seed)
        data = reload_data(run)
        work.progress.note("loading the model")
        adapter = reload_model(run)
        adapter.network.requires_grad_(False)
        net = Network(adapter)
        if states.width != net.info.width:
            raise UserError(f"{self.name}: {states.name} has width {states.width}; the model's residual stream has {net.info.width}")
        work.threads = 1  # torch computes in parallel by itself
        prefix = (run.experiment.get("generate") or {}).get("answer_prefix")
        spelling = Spelling(Answers(adapter, prefix), options.spelling)
        held = states.frame.iloc[division.held].reset_index(drop=True)
        sought = seek(held, gold_answers(data), options.steps, spelling)
        readout = Readout(net, False, options.top, _LOGITS)
        wanted = goal(options.target, run, states, data, net, readout, prefix, self.name)
        found = self._fitted(states, division, wanted, readout, sought, work)
        tables = tuned_tables.tables(states, held, groups, division, found, sought, Texts(adapter), options)
        files = {"translators.safetensors": _saved(states, found, run, options.target)} if options.save else {}
        return AnalysisResult(tables, self.draw(tables, {}), tuned_tables.summary(tables, states, options, sought.notes), files)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> dict[str, Figure]:
        """Return ``fit`` (held-out KL, plain and tuned) and ``rank`` (of the answer, plain and tuned)."""
        from codi_engine.plugins.analyses import tuned_figures

        return tuned_figures.draw(tables)

    def _check(self, run: Run) -> None:
        from codi_engine.core.sites import parse_site
        from codi_engine.plugins.analyses.latent_states import refuse_templates
        from codi_engine.plugins.analyses.readout import RESIDUAL

        site = parse_site(self.options.site, f"{self.name}: site")
        if site.component not in RESIDUAL or site.phase != "latent":
            raise UserError(f"{self.name}: site: translators are trained for the residual stream at latent steps, such as resid_post@latent; got {site}")
        if any(p <= 0 for p in self.options.penalties):
            raise UserError(f"{self.name}: penalties: must be greater than 0; an unpenalised translator of few states learns them by heart")
        refuse_templates(run, self.name)

    def _fitted(self, states: States, division: Division, wanted: Goal, readout: Readout, sought: Sought, work: Work) -> list[dict[str, np.ndarray]]:
        """Train and read every place; what is done is kept."""
        settings = {"analysis": self.name, "run": states.run.digest, "options": self.options.model_dump(exclude={"memory", "save"})}
        work.begin(settings)
        cells = np.arange(len(states.frame))
        parts = [_Part(i, 4 * states.width * len(cells)) for i in range(states.shape[0] * states.shape[1])]
        stream = work.stream(
            "translators", parts, lambda p, _: states.read(cells, [p.number])[0], lambda p, x: self._one(p, x, states, division, wanted, readout, sought)
        )
        return [dict(p) for p in stream]

    def _one(
        self, part: _Part, x: np.ndarray, states: States, division: Division, wanted: Goal, readout: Readout, sought: Sought
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Train the translator of one place and read the held-out states through it and without it."""
        from codi_engine.plugins.analyses.tuning import Place

        step = states.places[part.number % states.shape[1]]
        net = readout.net
        place = Place(x, wanted.at(step), lambda h: net.logits(net.normalise(h.to(net.dtype))), readout.rows, net.device)
        train, check = (rows[np.isfinite(x[rows]).all(1)] for rows in (division.train, division.check))
        fitted = place.fit(train, check, self.options.penalties, self.options.epochs)
        both = np.concatenate([train, check])
        out = {"penalty": np.array(fitted.penalty), "path": np.array(fitted.path), "n_train": np.array(len(both))}
        out |= {"weight": fitted.translator.weight, "bias": fitted.translator.bias, "first": wanted.first(step)[division.held]}
        out["constant_kl"] = place.constant(both, division.held)
        for name, translator in (("plain", None), ("tuned", fitted.translator)):
            out[f"{name}_train"] = place.divergence(translator, both)
            out[f"{name}_kl"] = place.divergence(translator, division.held)
            shown = x[division.held] if translator is None else translator(x[division.held])
            out |= {f"{name}_{n}": v for n, v in _read(readout.read(shown, sought.tokens)).items()}
        return out


def _read(read: Read) -> dict[str, np.ndarray]:
    return {"rank": read.rank[:, -1], "prob": read.prob[:, -1], "entropy": read.entropy, "top": read.top}


def _saved(states: States, found: Sequence[Mapping[str, np.ndarray]], run: Run, target: str) -> bytes:
    """Return the translators as safetensors: ``<site>.<layer>@latent[<step>].weight`` and ``.bias``; h + h·weight + bias."""
    import json

    from safetensors.numpy import save

    tensors = {}
    for number, place in enumerate(found):
        layer, step = states.layers[number // states.shape[1]], states.places[number % states.shape[1]]
        component = states.name.split("@")[0].split(".")[0]
        for part in ("weight", "bias"):
            tensors[f"{component}.{layer}@latent[{step}].{part}"] = np.ascontiguousarray(place[part], np.float32)
    about = {"map": "h + h @ weight + bias, then final norm and unembedding", "model_digest": str(run.provenance.get("model_digest", "")), "target": target}
    saved: bytes = save(tensors, {"about": json.dumps(about)})  # one key: several would be written in any order
    return saved
