"""The experiment file's schema: what it describes, what it lets pass and what not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codi_engine import hookimpl
from codi_engine.core.plugin import Metric, Options
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.schema import KEYS, experiment_schema
from codi_engine.core.yamlfile import parse_yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "src/codi_engine/plugins/demo/experiment.yaml"]
SCHEMA = experiment_schema(plugin_manager(load=False))


def findings(value: Any, schema: Any = SCHEMA) -> list[str]:
    """What a validator says; the tests that need it are skipped where there is none."""
    jsonschema = pytest.importorskip("jsonschema")
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def test_it_is_a_schema_of_the_dialect_that_it_names() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_key_is_described() -> None:
    for model, texts in KEYS.items():
        assert set(texts) == set(model.model_fields), model  # type: ignore[attr-defined]
    for where in (SCHEMA, *(SCHEMA["$defs"][name] for name in ("Generate", "CodeSpec", "Condition", "intervention"))):
        assert all(value.get("description") for value in where["properties"].values())


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(SCHEMA)
    named = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert named <= set(SCHEMA["$defs"])
    assert "dataset" in named


def test_every_plugin_is_named_with_its_help_and_options() -> None:
    for item in plugin_manager(load=False).registered:
        if item.kind == "sae_format":
            continue
        whole = SCHEMA["$defs"][item.kind]
        whole = whole if item.kind == "intervention" else whole["anyOf"][1]
        names = {option["const"]: option["description"] for option in whole["properties"]["plugin"]["oneOf"] if "const" in option}
        assert names[item.name]
        branch = next(b for b in whole["allOf"] if item.name in b["if"]["properties"]["plugin"]["enum"])
        properties = branch["then"]["properties"]
        assert set(item.cls.Options.model_fields) <= set(properties)
        assert all(properties[name]["description"] for name in item.cls.Options.model_fields), item.name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_valid(path: Path) -> None:
    assert findings(parse_yaml(path.read_text(encoding="utf-8"), path.name)[0]) == []


FILE: dict[str, Any] = {
    "name": "x", "model": {"plugin": "codi", "checkpoint": "demo"}, "data": "demo-pairs",
    "intervention": {"plugin": "steer", "site": "resid_post", "vector": "v.npy", "alpha": 2}, "sweep": {"layer": "all"}, "metrics": ["kl", {"plugin": "rank"}],
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"nmae": "y"},
        {"name": None},
        {"model": "cdoi"},
        {"model": {"plugin": "codi"}},
        {"model": {"plugin": "codi", "checkpoint": "demo", "latnets": 6}},
        {"model": {"plugin": "codi", "checkpoint": "demo", "latents": "six"}},
        {"data": {"plugin": "problems"}},
        {"intervention": {"plugin": "steer"}},
        {"intervention": {"plugin": "stear", "site": "resid_post"}},
        {"intervention": {"plugin": "steer", "site": "resid_post", "alhpa": 2}},
        {"intervention": {"plugin": "steer", "site": "resid_post", "mode": "ad"}},
        {"intervention": {"plugin": "zero", "site": "residpost"}},
        {"intervention": {"plugin": "zero", "site": "resid_post", "downstream": "frozen"}},
        {"conditions": {"a": {"intervention": {"plugin": "noise", "site": "resid_post", "sigma": "much"}}}},
        {"metrics": ["kll"]},
        {"metrics": [{"plugin": "kl", "at": "last"}]},
        {"analyses": [{"plugin": "importance", "q": 2}]},
        {"generate": {"max_new_tokens": 0}},
        {"controls": ["randon"]},
        {"trials": 0},
    ],
    ids=str,
)
def test_typical_mistakes_are_found(changes: dict[str, Any]) -> None:
    assert findings(FILE) == []
    assert findings({**FILE, **changes}) != []


def test_what_is_installed_is_in_it() -> None:
    class WideOptions(Options):
        """``width``: of the window."""

        width: int

    class Wide(Metric[WideOptions]):
        """How wide."""

        name = "wide"
        Options = WideOptions

        def measure(self, read: Any) -> Any:
            return {}

    plugins = plugin_manager(load=False)
    plugins.register(type("Package", (), {"metrics": staticmethod(hookimpl(lambda: [Wide]))}), "codi-wide", "2")
    assert plugins.problems == []
    schema = experiment_schema(plugins)
    for name in ("wide", "codi-wide/wide"):
        assert findings({**FILE, "metrics": [{"plugin": name, "width": 3}]}, schema) == []
        assert findings({**FILE, "metrics": [{"plugin": name, "width": "3"}]}, schema) != []
        assert findings({**FILE, "metrics": [{"plugin": name}]}, schema) != []
    assert findings({**FILE, "metrics": ["wide"]}) != []
