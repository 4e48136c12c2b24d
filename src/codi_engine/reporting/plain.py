"""An experiment in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codi_engine.core.planning.controls import control_of, in_words
from codi_engine.reporting.facts import Facts
from codi_engine.reporting.words import METRICS, count, listing, plural, tick

#: what interventions do, to be followed by where; others go by their name
_DOES = {
    "zero": "sets it to zero",
    "mean": "sets it to its mean over the data set",
    "noise": "adds noise to it",
    "patch": "puts in the value of the pair's other prompt",
    "resample": "puts in the value of another example",
    "recorded": "puts in what another run recorded",
    "steer": "adds a direction to it, or projects one out",
    "sae": "changes a feature of a sparse autoencoder in it",
    "early_decode": "ends the latent steps there, so that the answer begins",
}
#: what stands in for the edit's value in its controls
_CONTROLS = {
    "random": "a step as far, in a random direction",
    "wrong_step": "the value of another latent step",
    "shuffled": "the value of an unrelated example",
}
_KINDS = {"problems": "problem", "pairs": "pair", "prompts": "prompt"}
_ADDRESS = ("plugin", "site", "layer", "step", "position", "head", "direction", "on", "downstream", "tokens")
_DIRECTIONS = {"denoise": "clean values into the corrupted prompt", "noise": "corrupted values into the clean prompt"}


def summary(facts: Facts) -> str:
    """Return one sentence: model × data × intervention × sweep."""
    examples = int(facts.cells["example"].nunique()) if "example" in facts.cells else 0
    if facts.imported:
        axes = listing([plural(int(facts.cells[a].nunique()), a) for a in facts.axes if facts.cells[a].nunique() > 1]) or "one cell"
        return f"An imported or synthetic run: {count(len(facts.cells))} cells over {axes}."
    kind = _KINDS.get(facts.data.kind, "example") if facts.data is not None else "example"
    data = facts.experiment["data"].get("plugin", "")
    parts = [f"The model {_model(facts)} on {plural(examples, kind)} of {data}"]
    done = list(dict.fromkeys(_doing(spec) for _, spec, _ in conditions(facts) if spec))
    parts.append(f": {listing(done)}" if done else ": unedited, no intervention")
    swept = [_swept(facts.cells[a], a) for a in facts.places if facts.cells[a].nunique() > 1]
    parts.append(f", over {' × '.join(swept)}" if swept and done else "")
    return "".join(parts) + "."


def _swept(values: Any, axis: str) -> str:
    """Return ``6 steps``, or ``63 sets of steps`` where an edit is of several at once."""
    found = values.dropna().unique()
    several = axis in ("layer", "step", "position", "head") and any("+" in str(v) for v in found)
    return f"{len(found):,} sets of {axis}s" if several else plural(len(found), axis)


def _model(facts: Facts) -> str:
    model, provenance = facts.experiment["model"], facts.provenance
    where = next((str(model[k]) for k in ("checkpoint", "path") if isinstance(model.get(k), str)), "")
    size = [plural(provenance["layers"], "layer")] if isinstance(provenance.get("layers"), int) else []
    if provenance.get("latents"):
        size.append(plural(provenance["latents"], "latent step"))
    named = f"{model.get('plugin')} {where}".strip()
    return f"{named} ({', '.join(size)})" if size else named


def _doing(spec: Mapping[str, Any]) -> str:
    return f"{spec.get('plugin')} at {spec.get('site', '?')}"


def conditions(facts: Facts) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Return name, intervention and sweep of each condition of the experiment, as the file says them."""
    experiment = facts.experiment
    top, sweep = experiment.get("intervention") or {}, experiment.get("sweep") or {}
    named = experiment.get("conditions") or {}
    if not named:
        return [(facts.conditions[0] if facts.conditions else "edited", top, sweep)] if top else []
    found = [(n, c or {}) for n, c in named.items()]  # a condition's sweep stands in place of the common one
    return [(n, c.get("intervention") or top, sweep if c.get("sweep") is None else c["sweep"]) for n, c in found]


def condition_rows(facts: Facts) -> list[dict[str, Any]]:
    """Return name, what is done, where and how many cells, conditions of the file first and controls after them."""
    found = facts.cells["condition"].value_counts().to_dict() if "condition" in facts.cells else {}
    counts = {str(k): int(v) for k, v in found.items()}
    prompts = {n: (c or {}).get("prompt") for n, c in (facts.experiment.get("conditions") or {}).items()}
    out = []
    for name, spec, sweep in conditions(facts):
        out.append({"name": name, "does": _sentence(spec, prompts.get(name)), "where": _where(spec, sweep), "cells": int(counts.get(name, 0))})
    known = {r["name"] for r in out}
    for name in counts:
        if name in known or name == "baseline":
            continue
        control = control_of(str(name))
        does = f"control of {control[0]}: {_CONTROLS.get(control[1], in_words(control[1]))}" if control else ""
        out.append({"name": str(name), "does": does, "where": "", "cells": int(counts[name])})
    return out


def _sentence(spec: Mapping[str, Any], prompt: str | None) -> str:
    """Say what a condition does: its intervention, options, direction, and its prompt where it has one."""
    parts = [_DOES.get(str(spec.get("plugin")), str(spec.get("plugin")))] if spec else ["unedited"]
    if spec.get("plugin") == "sae" and spec.get("mode") == "reconstruct":
        parts = ["puts it through a sparse autoencoder without changing a feature"]
    options = {k: v for k, v in spec.items() if k not in _ADDRESS}
    if options:
        parts.append(", ".join(f"{k} {_short(v)}" for k, v in options.items()))
    if spec.get("direction"):
        parts.append(_DIRECTIONS.get(str(spec["direction"]), str(spec["direction"])))
    if spec.get("on"):
        parts.append(f"on the {spec['on']} prompt")
    if spec.get("downstream") == "freeze":
        parts.append("later latents stay those of the unedited run")
    if prompt:
        parts.append(f"asked as “{prompt}”")
    return "; ".join(parts)


def _where(spec: Mapping[str, Any], sweep: Mapping[str, Any]) -> str:
    """Return site and places, swept or fixed."""
    places = {k: spec[k] for k in ("layer", "step", "position", "head") if k in spec} | dict(sweep)
    if spec.get("tokens"):
        places["tokens"] = spec["tokens"]
    return " · ".join([str(spec.get("site", "")), *(f"{k} {_short(v)}" for k, v in places.items())]).strip(" ·")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def model_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return label and value of what is known of the model."""
    model, provenance = facts.experiment.get("model") or {}, facts.provenance
    rows = [("model", str(model["plugin"]))] if "plugin" in model else []
    rows += [(str(k).replace("_", " "), _short(v)) for k, v in model.items() if k not in ("plugin", "device")]
    rows += [(k, str(provenance[k])) for k in ("layers", "latents", "device") if provenance.get(k)]
    return rows + [("weights", str(line)) for line in provenance.get("model") or []]


def data_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return label and value of what is known of the data."""
    data = facts.experiment.get("data") or {}
    rows = [("data", str(data["plugin"]))] if "plugin" in data else []
    rows += [(str(k).replace("_", " "), _short(v)) for k, v in data.items() if k != "plugin"]
    if "example" in facts.cells:
        rows.append(("examples", count(int(facts.cells["example"].nunique()))))
    if facts.fields:
        rows.append(("fields", ", ".join(facts.fields)))
    return rows


def metric_names(facts: Facts) -> list[tuple[str, str]]:
    """Return name and meaning (empty where unknown) of the metrics."""
    return [(m, METRICS.get(m, "")) for m in facts.run.metrics]


__all__ = ["condition_rows", "conditions", "data_rows", "metric_names", "model_rows", "summary", "tick"]
