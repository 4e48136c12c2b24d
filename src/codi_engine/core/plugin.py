"""The contract of every plugin: a class with a name, validated options and a docstring that is its help."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from codi_engine.core.model import ModelAdapter, ModelInfo
    from codi_engine.core.rollout.sources import Sources
    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.core.sae import SAE
    from codi_engine.core.saestore import SaeStore
    from codi_engine.core.sites import Phase, Site

#: Version of the hook specification and of the classes below; a plugin may state the one it was written for.
SPEC_VERSION = 1
#: GB that an option for memory may name
MOST_MEMORY = 1_000_000


class Options(BaseModel):
    """Base of options models: strict types, unknown keys refused, never mutated."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class NoOptions(Options):
    """No options."""


OptionsT = TypeVar("OptionsT", bound=Options)


class Plugin(ABC, Generic[OptionsT]):
    """A named, configurable part. ``name`` is what experiment files say after ``plugin:``."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]]

    def __init__(self, options: OptionsT) -> None:
        self.options = options


# ---------------------------------------------------------------------------------------------- models


class Model(Plugin[OptionsT]):
    """A model that can be loaded: ``describe`` reads configuration only, ``load`` reads weights."""

    @abstractmethod
    def describe(self) -> ModelInfo:
        """Return layers, width, heads, latents … without loading any weight (used by ``--dry-run``)."""

    def locate(self) -> None:
        """Find the files of the weights, on the Hub too, and read none; raise UserError where there are none."""

    def files(self) -> Mapping[str, Path]:
        """Return name → file on this machine for all that decides its numbers: weights, configuration, tokenizer; nothing is fetched.

        A run keeps their digests and does not go on with others.
        """
        return {}

    @abstractmethod
    def load(self) -> ModelAdapter:
        """Load weights and tokenizer onto the device and audit every key."""


# -------------------------------------------------------------------------------------------- datasets


@dataclass(frozen=True)
class Prompt:
    """One text put before the model. ``answer`` is None where the data set has no answers."""

    text: str
    answer: float | None = None


@dataclass(frozen=True)
class Example:
    """The unit of inference: a problem, a clean/corrupted pair, or a plain prompt.

    ``prompts`` maps a variant to its text: ``{"main": …}`` for problems and prompts,
    ``{"clean": …, "corrupted": …}`` for pairs. ``fields`` are the record's other columns (scalars).
    """

    id: str
    prompts: Mapping[str, Prompt]
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A loaded data set.

    ``examples`` are those to sweep (after limit and sampling); ``pool`` are those that donors and means
    are taken from (before the limit, so that a pilot and the full run use the same ones).
    ``report`` counts what validation found and did, one line each.
    """

    kind: Literal["problems", "pairs", "prompts"]
    examples: Sequence[Example]
    pool: Sequence[Example]
    report: Sequence[str] = ()
    digest: str = ""


class Dataset(Plugin[OptionsT]):
    """A source of examples."""

    @abstractmethod
    def load(self) -> Data:
        """Read and validate the records; raise UserError naming file, line and field."""


# --------------------------------------------------------------------------------------- interventions


@dataclass(frozen=True)
class Rows:
    """The rows that an intervention owns at one site, one layer and one place (step or position).

    Attributes
    ----------
    values: what the model computed, rows × width (heads flattened out of it where the site has heads)
    source: rows × width, what ``Intervention.source`` asked for (partner's, donor's, own baseline, mean), or None
    scale: rows, the site's own scale at this place (RMS deviation from the data set's mean), or None
    labels: per axis one value a row (``example``, ``layer``, ``step`` or ``position``, ``donor``)
    site, layer, phase, place: where; ``place`` is the step k or the prompt/answer position
    draws: counter-based standard normal values keyed by (run seed, cell, site, place), rows × width, made on call
    """

    values: torch.Tensor
    labels: Mapping[str, np.ndarray]
    site: str
    layer: int | None
    place: int
    source: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    draws: Any = None
    phase: Phase = "latent"


class Intervention(Plugin[OptionsT]):
    """What is done at a site: sees its rows as one tensor and returns their new values.

    ``source`` says which baseline value it takes: None, ``own`` (same prompt, unedited), ``partner`` (the pair's
    other prompt), ``donor`` (another example's), ``mean`` (the data set's at the same place) or ``mean_over_steps``.
    ``needs_scale`` asks for ``Rows.scale``. ``prepare`` is called once with all baseline values.

    ``edits`` and ``source_at`` say where it writes and what it reads there; the gate holds them to the address and to the
    identity (a value put back where it came from changes nothing), unless ``gate_exempt`` gives the reason why not.
    """

    source: Literal["own", "partner", "donor", "mean", "mean_over_steps"] | None = None
    needs_scale: bool = False
    #: True when ``Rows.draws`` is used; cells then never share a row because of equal edits
    random: bool = False
    #: True where the step that a cell addresses is the first that is left out: the answer begins in its place
    ends_latents: ClassVar[bool] = False
    #: why the gate lets this pass although it edits elsewhere or is no identity; empty for everything that is sound
    gate_exempt: ClassVar[str] = ""

    def check(self, saes: SaeStore, site: Site, width: int) -> None:
        """Raise UserError where the options do not fit the files that they name; called before anything is computed."""

    def files(self) -> Sequence[str | Path]:
        """Return the files and run directories that its options name: a run keeps their digests and does not go on with others."""
        return ()

    def prepare(self, sources: Sources) -> None:
        """Compute what is needed once (a steering direction, for instance) from the baseline's values."""

    @abstractmethod
    def apply(self, rows: Rows) -> torch.Tensor:
        """Return the new values, rows × width, same dtype and device; never change ``rows.values`` in place."""

    def edits(self, phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
        """Return where a cell is edited, by phase: at the places that it addresses."""
        return {phase: places}

    def source_at(self, site: Site, place: int) -> tuple[Site, int]:
        """Return where the source's value is read for an edit at ``site`` (with its phase) and ``place``: at the same."""
        return site, place

    def identity(self) -> bool:
        """True when these options leave every value as it is (α = 0); the gate then demands exact equality."""
        return False

    def may_rest(self) -> bool:
        """True when some values may rightly stay as they are (a feature that does not fire is not scaled); the gate then demands no change."""
        return False

    def neutral(self) -> Intervention[OptionsT] | None:
        """Return this intervention with options that leave every value as it is, for the gate; None where there are none."""
        return None


# --------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Outcome:
    """What rows of one kind (edited, baseline, clean, corrupted) produced. Arrays have one entry a row.

    Attributes
    ----------
    text: generated answer text of the rows being measured; empty for stored unedited outcomes (their ``answer`` is there)
    answer: the number that the one extractor found, NaN when none
    number_logits: rows × vocabulary, fp32, where the answer's number is predicted (after the forced answer prefix)
    first_logits: rows × vocabulary, fp32, at the first answer token (eot for CODI)
    gold_logprob, other_logprob: log-probability of the gold / other answer's tokens, teacher-forced:
        rows × longest answer in tokens, padded with NaN ("other" is the partner's answer; NaN without pairs)
    gold_logit, other_logit: raw logits in the same layout
    captures: site → rows × … × width, what the experiment captures
    """

    text: Sequence[str]
    answer: np.ndarray
    number_logits: torch.Tensor
    first_logits: torch.Tensor
    gold_logprob: np.ndarray
    other_logprob: np.ndarray
    gold_logit: np.ndarray
    other_logit: np.ndarray
    captures: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Readings:
    """What a metric reads, row by row.

    ``gold`` and ``other`` are the numeric answers (NaN where there is none): gold belongs to the prompt that was run,
    other to its partner (pairs) or donor (resample). ``gold_token`` / ``other_token`` are the ids of the first number tokens (−1: none) of
    the answers whose logits are read: of pairs always the two sides', so that edited and unedited cells read the same.
    ``predicted`` is the answer that the recipient's solution gives with the donor's intermediate value (NaN where nothing is predicted).
    ``encode`` gives a text's token ids, without special tokens, for metrics that read other tokens than these.
    ``unusual`` is the share of natural states that are less extreme than the edited one (``core/running/natural.py``; None in unedited rows).
    ``edited`` is the row's own outcome, ``baseline`` the same prompt unedited. For pairs, ``clean`` and ``corrupted`` are the
    two unedited outcomes, and ``clean_is_gold`` says per row whether the clean answer is ``gold``. For baseline rows ``edited is baseline``.
    """

    labels: Mapping[str, np.ndarray]
    gold: np.ndarray
    other: np.ndarray
    gold_token: np.ndarray
    other_token: np.ndarray
    edited: Outcome
    baseline: Outcome
    clean: Outcome | None = None
    corrupted: Outcome | None = None
    clean_is_gold: np.ndarray | None = None
    predicted: np.ndarray | None = None
    encode: Callable[[str], Sequence[int]] | None = None
    unusual: np.ndarray | None = None


class Metric(Plugin[OptionsT]):
    """A number per row. ``needs`` tells the rollout what to produce, so that nothing else is computed."""

    #: subset of {"generation", "number_logits", "first_logits", "gold", "other", "captures", "natural"}
    needs: frozenset[str] = frozenset()
    #: True where it tells the two sides of a pair apart by ``Readings.other``, which is a donor's answer in conditions with donors
    compares_sides: ClassVar[bool] = False
    #: data-set kinds to which the metric applies; elsewhere a stated error
    applies_to: frozenset[str] = frozenset({"problems", "pairs", "prompts"})

    def columns(self) -> Sequence[str]:
        """Names of the columns produced, the metric's name by default."""
        return (self.name,)

    @abstractmethod
    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        """Return column → rows of float64; NaN only where the metric is undefined, as its docstring states."""


# -------------------------------------------------------------------------------------------- analyses


@dataclass(frozen=True)
class AnalysisResult:
    """What one analysis found.

    Attributes
    ----------
    tables: name → table; what ``Analysis.draw`` needs is in them or in ``facts``
    figures: usually none: ``Analysis.draw`` makes them; those given here are written too, and cannot be drawn again
    summary: one short text for the console
    files: further files, name → text, or bytes as they are written
    facts: what drawing needs and no table holds: plain JSON values, stored in ``result.json``
    """

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    summary: str = ""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Analysis(Plugin[OptionsT]):
    """A function of one or more runs that returns labelled tables and figures."""

    #: ``many``: all runs of a command at once; ``one``: each of them by itself
    takes: ClassVar[Literal["one", "many"]] = "one"
    #: seconds for any run and per cell on one core, where they are known: what a plan says of the analysis
    usual_seconds: ClassVar[tuple[float, float] | None] = None

    @abstractmethod
    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        """Read the runs and return the result; raise UserError when a needed column, array or text is missing.

        ``work`` offers bounded memory, threads, progress and durable partial results to analyses of large runs.
        """

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        """Return name → figure, the first one to look at first.

        Called when the analysis is made, and by ``codi-engine plot`` whenever a figure is drawn again: nothing is there but
        ``tables``, read back from Parquet (a column of mixed labels is text), ``about["facts"]``, ``about["title"]`` (the
        experiment's name; the rest of ``result.json`` too) and ``self.options``.
        """
        return {}

    def check(self, facts: Foreseen) -> None:
        """Raise UserError where the options cannot work on such a run.

        Called before anything is computed (with what the run will have) and before ``analyze`` (with what it has). The message
        begins with the option: ``metric: …``; file and field are put before it.
        """


# -------------------------------------------------------------------------------------------- trackers


@dataclass(frozen=True)
class Event:
    """Something in a run's life that somebody may want to know at once.

    Attributes
    ----------
    kind: ``warning``, ``disk`` (little room left), ``paused`` (Ctrl-C), ``failed``, ``resumed`` or ``note`` (what the plan says);
        later versions may add others
    text: one or two lines
    data: facts about it, plain values
    time: UTC, ISO 8601
    """

    kind: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    time: str = ""


class Tracker(Plugin[OptionsT]):
    """An observer of a run's life. Every method may be left out.

    The methods are called one after the other in a thread of the tracker's own, so that it may be slow, raise or hang: the run
    goes on. When it falls behind, the newest ``committed`` takes the place of older ones; nothing else is left out. At the end the
    run waits for it, but not for ever.

    Attributes
    ----------
    note: tells the user one line; set by the engine
    later: how what was not sent in time can still be sent (a command); shown when the wait at the end was not enough
    """

    later: str = ""

    def note(self, text: str) -> None:
        """Tell the user one line."""

    def check(self) -> None:
        """Raise UserError where something is missing (a package, a variable); called before anything is computed."""

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        """The model is loaded and the first unit begins; ``experiment`` is the resolved one as plain values."""

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        """Unit number ``unit`` of ``units`` is durable.

        ``aggregates``: ``cells`` and ``planned_cells`` (of the run: a resumed run goes on counting), ``seconds`` (of this
        invocation), ``cells_per_second``, ``memory_bytes``, and the mean of each metric over all committed cells of a condition as
        ``condition/metric``.
        """

    def event(self, event: Event) -> None:
        """Something happened."""

    def analysed(self, name: str, folder: Path) -> None:
        """An analysis has written its tables (Parquet), figures (PNG, SVG) and summary.txt to ``folder``."""

    def finished(self, run: Path, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        """Everything is committed and analysed; tables and figures of all analyses, name → file."""

    def close(self) -> None:
        """Nothing more will come, whether the run finished, paused or failed."""


# ------------------------------------------------------------------------------------- autoencoder formats


class SaeFormat(Plugin[NoOptions]):
    """A file format of sparse autoencoders. Formats have no options; the first one that knows a file reads it."""

    Options = NoOptions
    #: names that stand for paths, as ``demo`` does; ``{layer}`` in the path is filled in
    shortcuts: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Return whether a file or directory is of this format, as far as names and headers say; never raise."""

    @abstractmethod
    def read(self, path: Path) -> SAE:
        """Return the autoencoder on the CPU; raise UserError naming what is missing, unexpected, damaged or unknown."""

    def files(self, path: Path) -> Sequence[Path]:
        """Return the files that decide its numbers (for the digest): the file, or all files of a directory."""
        return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
