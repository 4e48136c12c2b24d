"""The JSON Schema (2020-12) of the experiment file, with the options of everything that is installed: for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codi_engine.core.describing import first_line, options_of
from codi_engine.core.experiment import CodeSpec, Condition, Experiment, Generate, InterventionSpec
from codi_engine.core.planning.controls import CONTROLS
from codi_engine.core.sites import COMPONENTS

if TYPE_CHECKING:
    from codi_engine.core.plugins import Plugins, Registered

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_EXPERIMENT = {
    "name": "A plain file name; the run goes to runs/<name>.",
    "model": "The model: {plugin: codi, checkpoint: …}, or a bare name.",
    "data": "The examples: {plugin: pairs, path: …}, or a bare name.",
    "checkpoints": "The same experiment for several models: {label: path or options}, a list of paths, or {from: pattern}.",
    "intervention": "What is done, and where.",
    "conditions": "Several named settings to be compared; what they leave out is taken from the top level.",
    "sweep": "The axes: layer, step, position, head, and options of the intervention.",
    "trials": "Sampled repetitions of every cell; needs generate.do_sample: true.",
    "metrics": "Numbers of every cell: names, or {plugin: kl, at: first}.",
    "capture": "Sites whose values are kept, and codes of sparse autoencoders.",
    "generate": "How answers are generated.",
    "seed": "Of everything that is drawn.",
    "analyses": "Run at the end: names, or {plugin: importance, by: reasoning_steps}.",
    "trackers": "Observers of the run.",
    "checks": 'What the results must be: accuracy: ">= 0.7", zero.flip: …, go: …',
    "price": "Of a GPU-hour (of an hour of this machine on a CPU).",
    "batch_size": "Rows at once; auto fits the memory budget.",
    "memory": "Budget in GB for batch_size: auto.",
    "unit_cells": "Cells of a unit, which is computed, committed and recomputed whole; of a new run.",
    "keep_free": "GB that stay free on the disk of the run: it pauses before; 0 fills the disk.",
    "common_random_numbers": "Conditions share what is drawn, so that their difference is the edit's.",
    "allow_vacuous": "Run conditions that are the same computation.",
    "nonfinite": "Rows with NaN or infinite values: stop at all, or mark all; left out, unedited rows stop and edited cells are marked.",
    "controls": "What else could have had the effect, run beside it.",
    "output": "Run directory; {date}, {name}, {seed} are filled in.",
    "reuse": "Runs (directories, or patterns such as runs/*) whose unedited rows are taken where model, bits and generation agree.",
    "notes": "Your own words, kept with the run.",
    "hypothesis": "What you expect, kept with the run.",
}
_INTERVENTION = {
    "plugin": "What is done.",
    "site": "Where: a component (resid_post), with layer and phase if they are fixed (resid_post.3@latent).",
    "layer": "Layers that are edited together in every cell.",
    "step": "Latent steps that are edited together in every cell.",
    "position": "Positions of the prompt that are edited together in every cell; −1 is its last token.",
    "head": "Heads that are edited together in every cell.",
    "direction": "Pairs: denoise runs the corrupted prompt (clean values in), noise the clean one.",
    "on": "Pairs: which prompt is run, for what takes no partner's values.",
    "downstream": "propagate: later latents follow the edit (total effect); freeze: they are pinned (direct effect).",
    "tokens": "Edit in every forward: the last token only, or all.",
}
_CONDITION = {
    "intervention": "What is done, and where.",
    "sweep": "The axes of this condition, in place of the top level's.",
    "prompt": "A template with {question}: how the example is asked.",
    "on": "Pairs: which prompt is run.",
}
_GENERATE = {
    "max_new_tokens": "Longest answer.",
    "do_sample": "Draw tokens; false takes the most likely one.",
    "temperature": "Of sampling.",
    "top_k": "Draw from the k most likely tokens; 0: from all.",
    "top_p": "Draw from the most likely tokens that hold this share.",
    "answer_prefix": "The words before the number; none: the model's own.",
    "slice": "Which ids are never generated: safe (none that are no text), or the reference's own rule.",
    "until": "A regular expression; a text is drawn again until it matches.",
    "retries": "How often a text is drawn again.",
}
_CODES = {
    "sae": "The autoencoder's file, directory or Hub folder, with {layer} filled in; demo is the packaged one.",
    "features": "all, a list of labels (L2-17), or {from: features.csv}.",
    "layers": "Layers whose codes are kept.",
    "site": "The site whose states are encoded.",
    "at": "last: the prompt's last token, the latents and every generated token; all: the whole prompt too.",
    "reduce": "Over these tokens: the last one's codes, their mean or their max.",
    "name": "Of the array.",
}
KEYS: Mapping[type, Mapping[str, str]] = {
    Experiment: _EXPERIMENT, InterventionSpec: _INTERVENTION, Condition: _CONDITION, Generate: _GENERATE, CodeSpec: _CODES,
}  # fmt: skip
#: (kind, key of the file) for plugins that stand alone and in lists
_SINGLE = {"model": "model", "data": "dataset"}
_LISTS = {"metrics": "metric", "analyses": "analysis", "trackers": "tracker"}


def experiment_schema(plugins: Plugins) -> dict[str, Any]:
    """Return the schema of the experiment file, with what ``plugins`` has."""
    whole = Experiment.model_json_schema()
    definitions = whole.pop("$defs")
    properties = whole["properties"]
    kept = {name: _closed(definitions[name], keys) for name, keys in (("Generate", _GENERATE), ("CodeSpec", _CODES))}
    kept["Axis"] = {"type": ["integer", "string", "array", "object", "number", "boolean"]}
    kept["Sweep"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/Axis"}}
    for key, kind in _SINGLE.items():
        kept[kind] = _reference(plugins, kind)
        properties[key] = {"$ref": f"#/$defs/{kind}"}
    for key, kind in _LISTS.items():
        kept[kind] = _reference(plugins, kind)
        properties[key] = {"type": "array", "items": {"$ref": f"#/$defs/{kind}"}}
    kept["intervention"] = _intervention(plugins, definitions["InterventionSpec"]["properties"])
    kept["Condition"] = _condition(definitions["Condition"])
    properties |= {
        "intervention": {"$ref": "#/$defs/intervention"},
        "conditions": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Condition"}},
        "sweep": {"$ref": "#/$defs/Sweep"},
        "generate": {"$ref": "#/$defs/Generate"},
        "capture": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/CodeSpec"}]}},
        "controls": {"anyOf": [{"enum": ["auto", "none"]}, {"type": "array", "items": {"enum": list(CONTROLS)}}]},
    }  # fmt: skip
    for key, text in _EXPERIMENT.items():
        properties[key] = {**_without(properties[key], "title"), "description": text}
    return {
        "$schema": DIALECT, "$id": "codi-engine/experiment", "title": "codi-engine experiment", "type": "object", "additionalProperties": False,
        "required": ["name", "model", "data"], "properties": properties, "$defs": kept,
    }  # fmt: skip


def _closed(schema: dict[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return an object's schema with a description of every key and no further ones."""
    properties = {key: {**_without(value, "title"), "description": texts[key]} for key, value in schema["properties"].items()}
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": schema.get("required", [])}


def _without(schema: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in names}


# ------------------------------------------------------------------------------------------------- plugins


def _reference(plugins: Plugins, kind: str) -> dict[str, Any]:
    """Return the schema of a plugin that stands by its bare name, or as {plugin: name, options}."""
    mine = [r for r in plugins.registered if r.kind == kind]
    names = _names(plugins, mine)
    branches = [_branch(plugins, item, {"plugin": True}, required=True) for item in mine]
    whole = {"type": "object", "required": ["plugin"], "properties": {"plugin": names}, "allOf": branches}
    return {"anyOf": [names, whole]} if mine else {"not": {}}


def _intervention(plugins: Plugins, address: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an intervention: its address, and the options of the one that it names."""
    mine = [r for r in plugins.registered if r.kind == "intervention"]
    keys = {key: {"$ref": "#/$defs/Axis"} if key in ("layer", "step", "position", "head") else _without(value, "title") for key, value in address.items()}
    keys |= {"plugin": _names(plugins, mine), "site": {"type": "string", "pattern": _sites()}}
    keys = {key: {**value, "description": _INTERVENTION[key]} for key, value in keys.items()}
    open_keys = dict.fromkeys(keys, True)  # described above; here they are only allowed
    branches = [_branch(plugins, item, open_keys, required=False) for item in mine]  # a required option may be swept instead
    return {"type": "object", "required": ["plugin", "site"], "properties": keys, "allOf": branches}


def _sites() -> str:
    """Return a pattern of addresses that begin with a component, and of the names that other libraries use."""
    return f"^({'|'.join(COMPONENTS)})([.@].*)?$|^(blocks|model|transformer|h|layers|gpt_neox|lm_head|ln_final)\\b"


def _names(plugins: Plugins, items: list[Registered]) -> dict[str, Any]:
    """Return the schema of a plugin's name: each with its help, by its full name too."""
    short = [{"const": plugins.written(item), "description": f"{first_line(item.cls)} ({item.package} {item.version})"} for item in items]
    full = [{"enum": sorted(item.full_name for item in items if plugins.written(item) != item.full_name)}]
    return {"oneOf": [*short, *(full if full[0]["enum"] else [])]}


def _branch(plugins: Plugins, item: Registered, keys: Mapping[str, Any], required: bool) -> dict[str, Any]:
    """Return: if the plugin is this one, then these options and no others."""
    options = item.cls.Options.model_json_schema()
    helps = {option.name: option.help for option in options_of(item.cls.Options)}
    inner = options.pop("$defs", {})
    properties = {key: _inlined({**_without(value, "title"), "description": helps[key]}, inner) for key, value in options.get("properties", {}).items()}
    then: dict[str, Any] = {"properties": {**keys, **properties}, "additionalProperties": False}
    if required and options.get("required"):
        then["required"] = options["required"]
    names = sorted({plugins.written(item), item.full_name})
    return {"if": {"properties": {"plugin": {"enum": names}}, "required": ["plugin"]}, "then": then}


def _inlined(schema: Any, definitions: Mapping[str, Any], depth: int = 8) -> Any:
    """Return a schema with its local definitions put in place; what contains itself is left open."""
    if isinstance(schema, list):
        return [_inlined(part, definitions, depth) for part in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name in definitions:
        rest = _without(schema, "$ref")
        return {**(_inlined(definitions[name], definitions, depth - 1) if depth else {}), **rest}
    return {key: _inlined(value, definitions, depth) for key, value in schema.items()}


def _condition(schema: dict[str, Any]) -> dict[str, Any]:
    closed = _closed(schema, _CONDITION)
    closed["properties"]["intervention"] = {"$ref": "#/$defs/intervention", "description": _CONDITION["intervention"]}
    closed["properties"]["sweep"] = {"$ref": "#/$defs/Sweep", "description": _CONDITION["sweep"]}
    return closed
