"""The experiment file: its schema, reading, overrides, and what of it is a run's identity."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from codi_engine.core.errors import UserError
from codi_engine.core.explaining import explain
from codi_engine.core.naming import unfit_name
from codi_engine.core.overriding import override
from codi_engine.core.patterns import explosive
from codi_engine.core.plainvalues import unfits
from codi_engine.core.planning.features import names_features, table_digest
from codi_engine.core.planning.labels import checked
from codi_engine.core.plugin import MOST_MEMORY, Options
from codi_engine.core.yamlfile import Lines, line_of, read_yaml

if TYPE_CHECKING:
    from codi_engine.core.progress import Progress
    from codi_engine.core.running.run import Finished

Axis = int | str | list[Any] | dict[str, Any] | float | bool


class PluginRef(BaseModel):
    """A plugin's name and its options (every other key)."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    plugin: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class InterventionSpec(PluginRef):
    """What is done, and where: the address keys below; every other key is an option of the intervention."""

    site: str
    layer: Axis | None = None
    step: Axis | None = None
    position: Axis | None = None
    head: Axis | None = None
    direction: Literal["denoise", "noise"] | None = None
    on: Literal["clean", "corrupted"] | None = None
    downstream: Literal["propagate", "freeze"] = "propagate"
    tokens: Literal["last", "all"] | None = None


class Condition(Options):
    """A named setting: what differs from the top level."""

    intervention: InterventionSpec | None = None
    sweep: dict[str, Axis] | None = None
    prompt: str | None = None
    on: Literal["clean", "corrupted"] | None = None

    @field_validator("prompt")
    @classmethod
    def _has_question(cls, value: str | None) -> str | None:
        if value is not None and "{question}" not in value:
            raise ValueError("must contain {question}, where the example's text goes")
        return value


class Generate(Options):
    """How answers are generated. ``answer_prefix``: the words before the number (None: the model's own)."""

    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    answer_prefix: str | None = None
    slice: Literal["safe", "reference"] = "safe"
    until: str | None = None
    retries: int = Field(default=0, ge=0, le=100)

    @model_validator(mode="after")
    def _retries_differ(self) -> Generate:
        if self.retries and (self.until is None or not self.do_sample):
            raise ValueError("retries draws a text again until it matches: it needs until: PATTERN and do_sample: true")
        if self.until is not None:
            try:
                re.compile(self.until)
            except re.error as error:
                raise ValueError(f"until: '{self.until}' is no regular expression: {error}") from None
            if explosive(self.until):
                raise ValueError(f"until: '{self.until}' repeats a repetition and could run for ever; make the inner one possessive: (\\w++\\s*+)+")
        return self


class CodeSpec(Options):
    """An entry of ``capture`` that keeps codes: ``sae`` (a path, ``{layer}`` filled in), which ``features``, of which tokens.

    ``features``: ``all`` of the ``layers``, a list of labels (L2-17), or ``{from: features.csv}``. ``at``: ``last`` reads the
    prompt's last token, the latents and every generated token, ``all`` the whole prompt too. ``reduce``: the ``last`` token's
    codes, their ``mean`` or their ``max`` over these tokens. ``name`` is the array's (default: sae).
    """

    sae: str
    features: str | list[str] | dict[str, Any] = "all"
    layers: Any = "all"
    site: str = "resid_post"
    at: Literal["last", "all"] = "last"
    reduce: Literal["last", "mean", "max"] = "last"
    name: str = Field(default="sae", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")


class Unfitting(UserError):
    """Values that are no experiment's. ``findings``: what pydantic says of them."""

    findings: ValidationError


class Experiment(Options):
    """One experiment, from a file or built in Python. ``docs/experiment-file.md`` describes every key."""

    name: str
    model: PluginRef
    data: PluginRef
    checkpoints: dict[str, Any] | list[str] | None = None
    intervention: InterventionSpec | None = None
    conditions: dict[str, Condition] = Field(default_factory=dict)
    sweep: dict[str, Axis] = Field(default_factory=dict)
    trials: int = Field(default=1, ge=1, le=100_000)
    metrics: list[PluginRef] = Field(default_factory=list)
    capture: list[str | CodeSpec] = Field(default_factory=list)
    generate: Generate = Field(default_factory=Generate)
    seed: int = Field(default=0, ge=0)
    analyses: list[PluginRef] = Field(default_factory=list)
    trackers: list[PluginRef] = Field(default_factory=list)
    checks: dict[str, Any] = Field(default_factory=dict)
    price: float | None = Field(default=None, ge=0.0)
    batch_size: int | Literal["auto"] = "auto"
    memory: float | None = Field(default=None, gt=0.0)
    keep_free: float | None = Field(default=None, ge=0.0)
    unit_cells: int | None = Field(default=None, ge=16, le=65_536)
    common_random_numbers: bool = False
    allow_vacuous: bool = False
    nonfinite: Literal["stop", "mark"] | None = None
    controls: Literal["auto", "none"] | list[Literal["random", "wrong_step", "shuffled"]] = "auto"
    output: str | None = None
    reuse: list[str] = Field(default_factory=list)
    notes: str | None = None
    hypothesis: str | None = None

    _source: str = PrivateAttr(default="experiment")

    def __init__(self, **values: Any) -> None:
        for path, problem in unfits(values):
            raise UserError(f"experiment: {path + ': ' if path else ''}{problem}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            unfitting = Unfitting(explain(error, type(self), "experiment", {}))
            unfitting.findings = error
            raise unfitting from None

    @model_validator(mode="before")
    @classmethod
    def _names_are_plugins(cls, value: Any) -> Any:
        """``accuracy`` is short for ``{plugin: accuracy}``."""
        if isinstance(value, dict):
            value = dict(value)
            for key in ("metrics", "analyses", "trackers"):
                if isinstance(value.get(key), list):
                    value[key] = [{"plugin": v} if isinstance(v, str) else v for v in value[key]]
            for key in ("model", "data"):
                if isinstance(value.get(key), str):
                    value[key] = {"plugin": value[key]}
        return value

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        problem = unfit_name(value)
        if problem:
            raise ValueError(problem)
        return value

    @field_validator("conditions")
    @classmethod
    def _conditions_are_words(cls, value: dict[str, Condition]) -> dict[str, Condition]:
        for name in value:
            if not name.strip() or name != name.strip() or not name.isprintable():
                raise ValueError(f"a condition's name is one or more visible characters, without space around them; got {name!r}")
        return value

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _labels_are_file_names(cls, value: Any) -> Any:
        return checked(value)

    @field_validator("memory")
    @classmethod
    def _memory_is_some_machine_s(cls, value: float | None) -> float | None:
        if value is not None and value > MOST_MEMORY:
            raise ValueError(f"is in GB; no machine has more than {MOST_MEMORY:,}, write less")
        return value

    @field_validator("batch_size")
    @classmethod
    def _batch_is_positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value

    @model_validator(mode="after")
    def _trials_differ(self) -> Experiment:
        if self.trials > 1 and not self.generate.do_sample:
            raise ValueError("trials above 1 repeat the same greedy answer; set generate.do_sample: true")
        return self

    @property
    def site_captures(self) -> list[str]:
        """The captured sites."""
        return [c for c in self.capture if isinstance(c, str)]

    @property
    def code_captures(self) -> list[CodeSpec]:
        """The captured codes of sparse autoencoders."""
        return [c for c in self.capture if not isinstance(c, str)]

    @property
    def source(self) -> str:
        """Return the file's name, for messages."""
        return self._source

    # ------------------------------------------------------------------------------------------ making

    @classmethod
    def from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """Read an experiment file; relative paths in it are relative to the working directory.

        Parameters
        ----------
        overrides: ``a.b=c`` texts, the value read as YAML

        Raises
        ------
        UserError: one or two lines naming file, line, field and remedy
        """
        value, lines = read_yaml(Path(path))
        return cls.from_dict(value, overrides, source=Path(path).name, lines=lines)

    @classmethod
    def from_dict(cls, value: Any, overrides: Sequence[str] = (), source: str = "experiment", lines: Lines | None = None) -> Experiment:
        """Build an experiment from plain values, as :meth:`from_file` does from a file."""
        lines = lines or {}
        if value is None:
            raise UserError(f"{source}: is empty; an experiment needs name, model and data")
        if not isinstance(value, dict):
            raise UserError(f"{source}: must be a mapping of keys such as name, model, data; got {type(value).__name__}")
        for text in overrides:
            value = override(value, text, cls.model_fields)
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise UserError(f"{source}{line_of(lines, str(odd))}: a key must be a word; got {odd!r}")
        for path, problem in unfits(value):
            raise UserError(f"{source}{line_of(lines, path)}: {path + ': ' if path else ''}{problem}")
        try:
            made = cls.model_validate(value)
        except Unfitting as error:
            raise UserError(explain(error.findings, cls, source, lines)) from None
        made._source = source
        if overrides:
            _check_set(made, [text.partition("=")[0].strip() for text in overrides], lines)
        return made

    def with_overrides(self, overrides: Sequence[str]) -> Experiment:
        """Return a copy with ``a.b=c`` changes."""
        return Experiment.from_dict(self.to_dict(), overrides, source=self.source)

    # ------------------------------------------------------------------------------------------- saying

    def to_dict(self) -> dict[str, Any]:
        """Return the experiment as plain values, without what stands at its default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def to_yaml(self) -> str:
        """Return the canonical text of the resolved experiment; a run is the same whatever its rows were taken from (``reuse``)."""
        return "# as resolved; repeat the command to go on with this run\n" + yaml.safe_dump(
            {k: v for k, v in self.to_dict().items() if k != "reuse"}, sort_keys=False, allow_unicode=True, width=100
        )

    def identity(self) -> dict[str, Any]:
        """Return what makes cells comparable: a run may grow along everything else."""
        model = {k: v for k, v in self.model.model_dump(mode="json").items() if k != "device"}
        data = {k: v for k, v in self.data.model_dump(mode="json").items() if k not in ("limit", "sample", "on_invalid")}
        places = {"layer", "step", "position", "head"}

        def spec(value: InterventionSpec | None) -> dict[str, Any] | None:
            swept = places | ({"feature"} if value is not None and names_features(value.options.get("feature")) else set())
            return None if value is None else value.model_dump(mode="json", exclude=swept, exclude_defaults=True)

        conditions = {name: {"intervention": spec(c.intervention), "prompt": c.prompt, "on": c.on} for name, c in self.conditions.items()}
        return {
            "model": model, "data": data, "intervention": spec(self.intervention), "conditions": conditions,
            "metrics": [m.model_dump(mode="json") for m in self.metrics], "capture": [_captured(c) for c in self.capture],
            "generate": self.generate.model_dump(mode="json"), "seed": self.seed,
            "common_random_numbers": self.common_random_numbers,
        }  # fmt: skip

    def run(self, output: str | Path | None = None, *, limit: int | None = None, device: str | None = None, progress: Progress | None = None) -> Finished:
        """Run the experiment, or go on with it; see :func:`codi_engine.core.running.run.run_experiment`."""
        from codi_engine.core.running.run import run_experiment
        from codi_engine.core.watching.showing import ending, usual

        with ending(progress or usual()) as shown:
            return run_experiment(self, output, limit=limit, device=device, progress=shown)


def _captured(entry: str | CodeSpec) -> Any:
    """What makes a captured array comparable: for a table of features also the file's content."""
    if isinstance(entry, str):
        return entry
    value = entry.model_dump(mode="json", exclude_defaults=True)
    if isinstance(entry.features, dict) and isinstance(entry.features.get("from"), str):
        value["table"] = table_digest(entry.features["from"])
    return value


def _check_set(made: Experiment, paths: Sequence[str], lines: Lines) -> None:
    """Refuse options that plugins that were changed do not have; what their values are worth is said with those that a sweep gives them."""
    from codi_engine.core.plugins import plugin_manager

    plugins = plugin_manager()
    for where, kind, ref in _plugins_of(made):
        known = ref.plugin in plugins.names(kind)
        if not known or not any(re.match(rf"{re.escape(where)}(\.|$)", path) for path in paths):
            continue
        options = plugins.get(kind, ref.plugin).Options
        more = list(InterventionSpec.model_fields) if kind == "intervention" else []
        try:
            options.model_validate(ref.options)
        except ValidationError as error:
            if any(f["type"] == "extra_forbidden" for f in error.errors()):
                raise UserError(explain(error, options, made.source, lines, where, more)) from None


def _plugins_of(made: Experiment) -> Iterator[tuple[str, str, PluginRef]]:
    """Yield (dotted path, kind, reference) of everything that names a plugin."""
    yield "model", "model", made.model
    yield "data", "dataset", made.data
    for key, kind in (("metrics", "metric"), ("analyses", "analysis"), ("trackers", "tracker")):
        for number, ref in enumerate(getattr(made, key)):
            yield f"{key}[{number}]", kind, ref
    if made.intervention is not None:
        yield "intervention", "intervention", made.intervention
    for name, condition in made.conditions.items():
        if condition.intervention is not None:
            yield f"conditions.{name}.intervention", "intervention", condition.intervention
