"""How a run was made, in sentences, from its experiment and provenance alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.controls import control_of, in_words
from codi_engine.core.runs.results import BASELINE
from codi_engine.core.watching.inventory import inventory
from codi_engine.core.watching.status import status_of
from codi_engine.reporting.escape import code, md

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run
    from codi_engine.core.watching.inventory import Entry

_DIRECTIONS = {"denoise": "clean values into the corrupted prompt (denoise: sufficiency)", "noise": "corrupted values into the clean prompt (noise: necessity)"}
_DOWNSTREAM = {"propagate": "later latents follow the edit (total effect)", "freeze": "later latents are pinned to the unedited run (direct effect)"}
_TOKENS = {"last": "at the last token of every forward", "all": "at every token"}
_PLACES = ("layer", "step", "position", "head")
_SAID = (*_PLACES, "plugin", "site", "direction", "downstream", "tokens", "on")
#: options of analyses that say how their tests were made
_STATISTICS = ("metric", "metrics", "test", "unit", "pairs", "correction", "q", "confidence", "min_effect", "permutations", "seed", "keep")


def method(run: Run) -> list[str]:
    """Return the paragraphs of the method."""
    experiment = run.experiment
    entry = inventory([status_of(run.path)])[0]
    if "model" not in experiment:
        return [_foreign(run, entry), *_statistics(run)]
    said = [_model(run, experiment, entry), _data(run, entry), *_conditions(run, experiment), _measured(experiment), *_statistics(run)]
    return [s for s in said if s]


def _foreign(run: Run, entry: Entry) -> str:
    origin = f" ({code(entry.origin)})" if entry.origin else ""
    axes = ", ".join(f"{code(a)} {len(run.store.labels(a)):,}" for a in run.axes)
    return f"The cells were not computed here: the run is synthetic or imported{origin}. It has {entry.cells:,} cells over the axes {axes}."


def _model(run: Run, experiment: Mapping[str, Any], entry: Entry) -> str:
    model, provenance = experiment["model"], run.store.provenance
    options = _options({k: v for k, v in model.items() if k not in ("plugin", "device")})
    size = [f"{provenance[k]:,} {word}" for k, word in (("layers", "layers"), ("latents", "latent steps")) if provenance.get(k)]
    text = f"**Model.** {code(model['plugin'])}{options}" + (f", {', '.join(size)}" if size else "")
    text += f"; SHA-256 of its files {code(entry.model_digest[:16])}" if entry.model_digest else ""
    return f"{text}. Computed on {md(provenance.get('device', 'an unknown device'))}."


def _data(run: Run, entry: Entry) -> str:
    origin = " (packaged with codi-engine)" if entry.origin == "packaged" else f" from {code(entry.origin)}" if entry.origin else ""
    text = f"**Data.** {code(entry.data)}{origin}"
    text += f", filters: {_options(entry.filters).strip(' ()')}" if entry.filters else ", no filters"
    text += f"; {entry.size} swept" + (f"; SHA-256 {code(entry.data_digest[:16])}" if entry.data_digest else "")
    report = run.store.provenance.get("data") or []
    return f"{text}." + (f" On reading: {md('; '.join(map(str, report)))}." if report else "")


def _conditions(run: Run, experiment: Mapping[str, Any]) -> list[str]:
    """Say each condition, then the controls beside them."""
    top, sweep = experiment.get("intervention"), experiment.get("sweep") or {}
    named = experiment.get("conditions") or {}
    specs = {n: (c.get("intervention") or top, sweep if c.get("sweep") is None else c["sweep"], c) for n, c in named.items()}
    known = [str(c) for c in run.store.labels("condition")]
    if not specs and top:
        specs = {next((c for c in known if c != BASELINE and control_of(c) is None), top["plugin"]): (top, sweep, {})}
    said = [_condition(name, *what) for name, what in specs.items()]
    lines = ["**Interventions.** Every prompt is first run unedited (the baseline); edited cells are compared with it.\n" if specs else "Nothing is edited."]
    lines += [f"- {s}" for s in said]
    controls = [(c, control_of(c)) for c in known if control_of(c) is not None]
    if controls:
        words = dict.fromkeys(f"{code(found[0])}: {in_words(found[1])}" for _, found in controls if found)
        lines.append(f"- Controls at the same places: {'; '.join(words)}.")
    elif specs and experiment.get("controls") == "none":
        lines.append("- No controls were run (`controls: none`).")
    return ["\n".join(lines)]


def _condition(name: str, spec: Mapping[str, Any] | None, sweep: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    parts = [f"**{md(name)}**:"]
    if spec:
        places = {**{k: spec[k] for k in _PLACES if k in spec}, **sweep}
        parts.append(f"{code(spec['plugin'])}{_options({k: v for k, v in spec.items() if k not in _SAID})} at {code(spec.get('site', '?'))}")
        parts += [_TOKENS[spec["tokens"]]] if spec.get("tokens") in _TOKENS else []
        parts += [f"swept over {', '.join(f'{md(k)} {md(_short(v))}' for k, v in places.items())}"] if places else []
        parts += [f"; {_DIRECTIONS[spec['direction']]}"] if spec.get("direction") in _DIRECTIONS else []
        parts += [f"; {_DOWNSTREAM.get(spec.get('downstream', 'propagate'), '')}"] if not spec.get("tokens") else []
    else:
        parts.append("no edit")
    for key in ("prompt", "on"):
        value = more.get(key) or (spec or {}).get(key)
        parts += [f"; {key} {code(value)}"] if value else []
    return " ".join(parts).replace(" ;", ";") + "."


def _measured(experiment: Mapping[str, Any]) -> str:
    metrics = ", ".join(code(m["plugin"]) + _options({k: v for k, v in m.items() if k != "plugin"}) for m in experiment.get("metrics") or [])
    generate = experiment.get("generate") or {}
    trials = experiment.get("trials", 1)
    how = "sampled" if generate.get("do_sample") else "decoded greedily"
    text = f"**Measured.** Metrics: {metrics or 'none'}. Answers are {how}{_options({k: v for k, v in generate.items() if k != 'do_sample'})}"
    repeated = f", {trials:,} trials per cell" if trials > 1 else ""
    return f"{text}{repeated}; seed {experiment.get('seed', 0)}."


def _statistics(run: Run) -> list[str]:
    """Say with which options each stored analysis was made."""
    lines = []
    for name, result in run.results.items():
        options = result.about.get("options")
        if isinstance(options, Mapping):
            used = {k: options[k] for k in _STATISTICS if options.get(k) not in (None, [], 0.0)}
            lines.append(f"- {code(name)}{_options(used)}")
    return (
        ["\n".join(["**Statistics.** Each analysis corrects over its whole family of tests; its summary below says the unit of inference.\n", *lines])]
        if lines
        else []
    )


def _options(values: Mapping[str, Any]) -> str:
    """Return `` (limit 60, both correct yes)``; nothing where there are none."""
    return f" ({', '.join(f'{md(k)} {md(_short(v))}' for k, v in values.items())})" if values else ""


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (list, tuple)) and len(v) == 2 for v in value):
        return ", ".join(f"{a} − {b}" for a, b in value)
    text = ", ".join(map(_short, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
