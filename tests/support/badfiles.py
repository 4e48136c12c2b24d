"""Experiment files that are bad in a known way: a valid one, broken in one or two places."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from codi_engine.core.plugins import plugin_manager
from codi_engine.core.schema import experiment_schema
from codi_engine.core.yamlfile import parse_yaml

ROOT = Path(__file__).parents[2]
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class BadFile:
    """A file, what was done to it, and the words one of which its error must say (beside the file's name)."""

    broken: str
    content: bytes
    says: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------- valid files


@functools.cache
def valid() -> dict[str, dict[str, Any]]:
    """Return name → experiment: the examples, the demo and those of the tutorial, on as few examples as they can be tried with."""
    found = {}
    files = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "src/codi_engine/plugins/demo/experiment.yaml"]
    for file in files:
        value = parse_yaml(file.read_text(encoding="utf-8"), file.name)[0]
        found[value["name"]] = _smaller(value)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for number, block in enumerate(re.findall(r"(?m)^((?:    .*\n|\n)+)", page.read_text(encoding="utf-8"))):
            text = re.sub(r"(?m)^    ", "", block)
            if re.search(r"(?m)^name: ", text) and "demo" in text and re.search(r"(?m)^model: ", text) and re.search(r"(?m)^data:", text):
                found[f"{page.stem}-{number}"] = _smaller(parse_yaml(text, page.name)[0])
    del found["recorded"]  # needs the run of another example
    return found


def _smaller(value: dict[str, Any]) -> dict[str, Any]:
    data = value["data"]
    if isinstance(data, dict):
        data.pop("sample", None)
        data["limit"] = 3
    value["controls"] = "none"
    return value


def written(value: Any) -> bytes:
    """Return a value as YAML, floats that YAML has no plain form for included."""
    return yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


class _Plain(yaml.SafeDumper):
    """Writes what stands twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# ----------------------------------------------------------------------------------- wrong types, key by key


#: what a value of each JSON type may be, where a key takes none of that type
_VALUES: dict[str, list[Any]] = {
    "null": [None],
    "boolean": [True, False],
    "integer": [7, -1, 10**400],
    "number": [0.5, float("nan"), float("inf"), -1e308],
    "string": ["zzz", "", "1e-3x", "\u202ename", "y" * 3000, "../../x", "yes"],
    "array": [[], [1], [[[]]], ["a", {"b": 1}]],
    "object": [{}, {"a": 1}, {"plugin": []}, {"x": {"y": {}}}],
}


@functools.cache
def _schema() -> dict[str, Any]:
    return experiment_schema(plugin_manager(load=False))


def types_of(part: Any) -> set[str]:
    """Return the JSON types that a part of the schema may take (all of them where it does not say)."""
    if "$ref" in part:
        return types_of(_schema()["$defs"][part["$ref"].removeprefix("#/$defs/")])
    for several in ("anyOf", "oneOf"):
        if several in part:
            return set().union(*(types_of(one) for one in part[several]))
    if "const" in part or "enum" in part:
        return {_type(v) for v in part.get("enum", [part.get("const")])}
    stated = part.get("type", list(_VALUES))
    return set([stated] if isinstance(stated, str) else stated)


def _type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


def wrong_values(part: Any) -> list[Any]:
    """Return values of types that a part of the schema does not take."""
    taken = types_of(part) | ({"null"} if part.get("$ref") == "#/$defs/Axis" else set())  # nothing is as good as no address
    taken |= {"integer"} if "number" in taken else set()
    return [value for kind, values in _VALUES.items() if kind not in taken for value in values]


@functools.cache
def keys() -> list[tuple[str, Path_, dict[str, Any]]]:
    """Return (base, path, schema) of every key of every experiment, plugin options included, for all keys that there are."""
    found: list[tuple[str, Path_, dict[str, Any]]] = []
    schema, defs = _schema(), _schema()["$defs"]
    for name, base in valid().items():
        found += [(name, (key,), part) for key, part in schema["properties"].items()]
        found += [(name, ("generate", key), part) for key, part in defs["Generate"]["properties"].items()]
        for path, value in _plugins(base):
            kind = _kind(path)
            found += [(name, (*path, key), part) for key, part in _options(kind, value["plugin"]).items()]
        for number, value in enumerate(base.get("capture", [])):
            if isinstance(value, dict):
                found += [(name, ("capture", number, key), part) for key, part in defs["CodeSpec"]["properties"].items()]
        for label in base.get("conditions", {}):
            found += [(name, ("conditions", label, key), part) for key, part in defs["Condition"]["properties"].items()]
    return [(name, path, part) for name, path, part in found if wrong_values(part)]


_KINDS = {"model": "model", "data": "dataset", "metrics": "metric", "analyses": "analysis", "trackers": "tracker"}


def _kind(path: Path_) -> str:
    return "intervention" if path[-1] == "intervention" else _KINDS[str(path[0])]


def _plugins(base: dict[str, Any]) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Yield (path, mapping) of everything that names a plugin and is written as a mapping."""
    for key in ("model", "data", "intervention"):
        if isinstance(base.get(key), dict):
            yield (key,), base[key]
    for key in ("metrics", "analyses", "trackers"):
        for number, value in enumerate(base.get(key, [])):
            if isinstance(value, dict):
                yield (key, number), value
    for label, condition in base.get("conditions", {}).items():
        if "intervention" in condition:
            yield ("conditions", label, "intervention"), condition["intervention"]


def _options(kind: str, plugin: str) -> dict[str, Any]:
    whole = _schema()["$defs"][kind]
    whole = whole if kind == "intervention" else whole["anyOf"][1]
    own = {"plugin": {"type": "string"}}
    for branch in whole["allOf"]:
        if plugin in branch["if"]["properties"]["plugin"]["enum"]:
            own |= {key: part for key, part in branch["then"]["properties"].items() if part is not True}
    address = whole["properties"] if kind == "intervention" else {}
    return {**{key: part for key, part in address.items() if key != "plugin"}, **own}


def put(base: Any, path: Path_, value: Any) -> Any:
    """Return a copy of plain values with one of them replaced, or added."""
    changed = copy.deepcopy(base)
    target = changed
    for part in path[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
    target[path[-1]] = value
    return changed


def wrong_type(draw: st.DrawFn) -> BadFile:
    name, path, part = draw(st.sampled_from(keys()))
    value = draw(st.sampled_from(wrong_values(part)))
    changed = put(valid()[name], path, value)
    return BadFile(f"{name}: {_dotted(path)} = {str(value)[:60]!r}", written(changed), tuple(str(p) for p in path if isinstance(p, str)))


def _dotted(path: Path_) -> str:
    return ".".join(str(p) for p in path)


# ------------------------------------------------------------------------------------- keys that are not there


def unknown_key(draw: st.DrawFn) -> BadFile:
    """A key that nobody knows, or a known one misspelt, in any mapping of the file."""
    name = draw(st.sampled_from(sorted(valid())))
    base = valid()[name]
    closed: list[Path_] = [(), *(path for path, _ in _plugins(base)), ("generate",)]
    path = draw(st.sampled_from(closed))
    known = [str(k) for k in _at(base, path)]
    word = draw(st.sampled_from(known))
    misspelt = draw(
        st.sampled_from([word[:-1] + "_x", word + "s_", "x" + word, word.upper() + "_", "zzz", "__class__", "model_config", "a b", "ключ", "-", "1", "null "])
    )
    value: Any = draw(st.sampled_from([1, "a", None, [], {"a": 1}, True]))
    changed = put(base, (*path, misspelt), value)
    return BadFile(f"{name}: unknown key {_dotted((*path, misspelt))}", written(changed), (misspelt.strip(),))


def unknown_plugin(draw: st.DrawFn) -> BadFile:
    """A plugin that is not installed, or one of another kind."""
    name = draw(st.sampled_from(sorted(valid())))
    places = [path for path, _ in _plugins(valid()[name])]
    path = draw(st.sampled_from(places))
    plugin = draw(
        st.sampled_from(
            [
                "zzz",
                "",
                "os.system",
                "../codi",
                "codi-engine/zzz",
                "CODI",
                "kl ",
                "\u202ekl",
                "y" * 3000,
                "__import__('os')",
                "a/b/c",
                "wandb:x",
                "sae_format",
                ".",
            ]
        )
    )
    return BadFile(f"{name}: plugin {_dotted(path)} = {plugin[:30]!r}", written(put(valid()[name], (*path, "plugin"), plugin)), (str(path[0]),))


def missing_key(draw: st.DrawFn) -> BadFile:
    name = draw(st.sampled_from(sorted(valid())))
    key = draw(st.sampled_from(["name", "model", "data"]))
    changed = {k: v for k, v in valid()[name].items() if k != key}
    return BadFile(f"{name}: without {key}", written(changed), (key,))


def _at(base: Any, path: Path_) -> Any:
    for part in path:
        base = base.get(part, {"max_new_tokens": 1}) if isinstance(base, dict) else base[part]
    return base


# --------------------------------------------------------------------------------------- out of the possible


_NAMES = [
    "a/b",
    "..",
    ".",
    "../x",
    "/etc/passwd",
    "a\\b",
    "-rf",
    "--help",
    "a\nb",
    "a\0b",
    "n" * 5000,
    "",
    " ",
    "a b",
    "a:b",
    "\u202ea",
    "name\x1b[31m",
    "é",
    "a\u200b",
    "~",
    "$HOME",
    "{date}",
    "a*",
    "a?",
    "<b>",
    "|",
    "%2e%2e",
    ".hidden",
    "CON",
    "nul",
    "COM1",
    "con.txt",
    "Aux.",
    "a.",
    "LPT9.x",
    "a\n",
]

#: (path, values): each is wrong in every file that has the path's parents
_ANYWHERE: list[tuple[Path_, list[Any]]] = [
    (("name",), _NAMES),
    (("seed",), [-1, -(10**30), 2**200, 10**400]),
    (("trials",), [0, -1, 10**9, 10**400, 2]),
    (("batch_size",), [0, -5, "all", 10**400]),
    (("memory",), [0, -1, float("nan"), float("inf"), -0.0, 1e300]),
    (("price",), [-1, float("nan"), float("inf")]),
    (("generate", "max_new_tokens"), [0, -1, 10**6, 10**400, 4097]),
    (("generate", "temperature"), [0, -1, float("nan"), float("inf")]),
    (("generate", "top_k"), [-1, 10**400]),
    (("generate", "top_p"), [0, 1.5, -1, float("nan")]),
    (("generate", "retries"), [-1, 101, 5]),
    (("generate", "until"), ["(", "(a+)+$", "[", "(?P<a>x)(?P<a>y)", "(a*)*b", "x{2,1}", "(?<=a+)b", "\\"]),
    (("generate", "slice"), ["Safe", "all"]),
    (("data", "limit"), [0, -3, 10**400, "ten", 1.5]),
    (("model", "device"), ["cuda:99", "gpu", "", "cpu:1000000", "../cpu", "meta", "cuda:-1"]),
    (("model", "dtype"), ["float64", "int8", "auto"]),
    (("controls",), ["all", ["random", "zzz"], [[]]]),
    (("metrics",), [["zzz"], ["kl", "zzz"], [[]], [{"plugin": "kl", "x": 1}], [None], "kl"]),
    (("analyses",), [["zzz"], [{"plugin": "importance", "metric": "zzz"}], [{}], [1]]),
    (("trackers",), [["zzz"], [{"plugin": "tensorboard", "zzz": 1}], [{}]]),
    (
        ("capture",),
        [
            ["zzz"],
            ["resid_post.99"],
            ["resid_post@nowhere"],
            ["resid_post.0@latent[99]"],
            ["../../x"],
            [""],
            ["resid_post.-99"],
            ["resid_post.0@latent[a]"],
            ["resid_post.0@latent[0:99999999999]"],
            ["resid_post.0@latent[0:" + "9" * 30 + "]"],
            ["resid_post@latent[0:0]"],
            ["resid_post.1.2"],
            ["latent_out", "latent_out"],
            ["resid_post." + "9" * 5000],
            [{"sae": "nowhere/{layer}"}],
            [{"sae": "demo", "name": "../x"}],
            [{"sae": "demo", "layers": [99]}],
            [{"sae": "demo", "features": ["L0-999999"]}],
            [{"sae": "demo", "features": ["x"]}],
        ],
    ),
    (
        ("checks",),
        [
            {"zzz": ">= 1"},
            {"accuracy": "high"},
            {"accuracy": ">= x"},
            {"accuracy": 1},
            {"no_nan": 3},
            {"peak_memory": "<= 4"},
            {"zzz.kl": ">= 0"},
            {"effect_map": 1},
            {"accuracy": ">= 0.7; import os"},
            {"accuracy": ">= nan"},
            {"accuracy": "0.9 .. 0.1"},
            {"a" * 3000: ">= 0"},
            {"\u202e": ">= 0"},
        ],
    ),
    (
        ("output",),
        [
            "{zzz}",
            "{0}",
            "{",
            "{name.__class__}",
            "{name!x}",
            "a\0b",
            "{date:%zzzz{}}",
            "{seed[0]}",
            "x" * 5000,
            "é" * 200,
            "abc/" * 2000,
            "{name:>99999999999}",
        ],
    ),
    (
        ("sweep",),
        [
            {"layer": 99},
            {"layer": []},
            {"layer": [0, 0]},
            {"zzz": [1]},
            {"layer": "middel"},
            {"layer": {"range": [0, 10**9]}},
            {"layer": "0:10:0"},
            {"layer": -99},
            {"layer": 1.5},
            {"layer": True},
            {"layer": [None]},
            {"layer": {}},
            {"layer": [[[0]]]},
            {"layer": "::"},
            {"layer": "0:" + "9" * 5000},
            {"layer": 10**400},
            {"layer": {"range": [0, 3, 0]}},
            {"step": 10**400},
            {"step": [-1]},
            {"step": "0:99"},
            {"position": {"range": [0, 10**12]}},
            {"donor": 0},
            {"donor": -1},
            {"donor": 10**9},
            {"donor": ["a"]},
            {"donor": [[]]},
            {"donor": []},
            {"donor": [-1]},
            {"donor": [0.5]},
            {"donor": [True]},
            {"position": {"range": [0, 2**64 - 1]}},
            {"position": "0:" + "9" * 30},
            {"head": 99},
        ],
    ),
]


def impossible(draw: st.DrawFn) -> BadFile:
    """A value of the right type that cannot be."""
    name = draw(st.sampled_from(sorted(valid())))
    path, values = draw(st.sampled_from([(p, v) for p, v in _ANYWHERE if _may(valid()[name], p)]))
    value = draw(st.sampled_from(values))
    base = valid()[name]
    if path == ("sweep",) and "conditions" in base:  # theirs would be the ones that count
        base = {k: v for k, v in base.items() if k != "conditions"} | {"intervention": {"plugin": "zero", "site": "resid_post"}}
        for condition in valid()[name]["conditions"].values():
            base["intervention"] = condition.get("intervention", base["intervention"])
    return BadFile(f"{name}: {_dotted(path)} = {str(value)[:60]!r}", written(put(base, path, value)), (str(path[0]), str(path[-1])))


def _may(base: dict[str, Any], path: Path_) -> bool:
    return path != ("sweep",) or "conditions" in base or "intervention" in base


_CONDITION_NAMES = ["baseline", "a\0b", "n" * 5000, "", " ", "\u202e", "a\nb", "a\x1b[31mb", "zero [random]", "zero~random", ".", "..", "=1+1", "<script>"]


# ------------------------------------------------------------------------------------------ no YAML, or too much


def _bombs() -> dict[str, Callable[[str], bytes]]:
    """Return what → (text of a valid file → bytes of one that is none)."""
    laugh = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
    )
    return {
        "empty": lambda t: b"",
        "blank": lambda t: b"\n \n\n",
        "comment": lambda t: b"# nothing\n",
        "null": lambda t: b"null\n",
        "scalar": lambda t: b"run\n",
        "list": lambda t: b"- a\n- b\n",
        "number": lambda t: b"42",
        "two documents": lambda t: (t + "---\n" + t).encode(),
        "yaml bomb": lambda t: (laugh + t).encode(),
        "anchor and alias": lambda t: (t + "notes: &n x\nhypothesis: *n\n").encode(),
        "merge key": lambda t: ("<<: {name: x}\n" + t).encode(),
        "merge of alias": lambda t: (t + "generate: &g {top_k: 1}\nsweep: {<<: *g}\n").encode(),
        "self alias": lambda t: (t + "notes: &n [*n]\n").encode(),
        "python object": lambda t: (t + "notes: !!python/object/apply:os.system ['true']\n").encode(),
        "python name": lambda t: (t + "notes: !!python/name:os.system\n").encode(),
        "own tag": lambda t: (t + "notes: !secret x\n").encode(),
        "binary tag": lambda t: (t + "notes: !!binary aGk=\n").encode(),
        "set tag": lambda t: (t + "notes: !!set {a, b}\n").encode(),
        "bad int tag": lambda t: (t + "seed: !!int abc\n").encode(),
        "duplicate key": lambda t: (t + t.splitlines()[0] + "\n").encode(),
        "duplicate name": lambda t: (t + "name: other\n").encode(),
        "duplicate inner": lambda t: (t + "notes: {a: 1, a: 2}\n").encode(),
        "deep list": lambda t: (t + "notes: " + "[" * 10_000 + "]" * 10_000 + "\n").encode(),
        "deep open": lambda t: (t + "notes: " + "[" * 10_000).encode(),
        "deep braces": lambda t: (t + "notes: " + "{a: " * 10_000).encode(),
        "deep blocks": lambda t: (t + "notes:\n" + "".join(" " * i + "a:\n" for i in range(1, 900))).encode(),
        "dashes": lambda t: (t + "notes: \n" + "- " * 10_000 + "x\n").encode(),
        "question marks": lambda t: (t + "notes: \n " + "? " * 10_000 + "x\n").encode(),
        "brackets only": lambda t: b"[" * 900_000,
        "braces only": lambda t: b"{" * 900_000,
        "50 MB": lambda t: t.encode() + b"# " + b"x" * 50_000_000,
        "50 MB of keys": lambda t: b"a: 1\n" * 10_000_000,
        "900 kB of keys": lambda t: b"".join(b"k%d: 1\n" % i for i in range(90_000)),
        "900 kB of one word": lambda t: t.encode() + b"notes: " + b"x" * 900_000 + b"\nzzz: 1\n",
        "900 kB of colons": lambda t: b": " * 450_000,
        "900 kB of ampersands": lambda t: b"&a " * 300_000,
        "900 kB of quotes": lambda t: b"'" * 900_001,
        "900 kB of percent": lambda t: b"%" * 900_000,
        "900 kB of commas": lambda t: b"[" + b"a," * 450_000 + b"]",
        "long key": lambda t: (t + "k" * 5000 + ": 1\n").encode(),
        "very long key": lambda t: (t + "? " + "k" * 50_000 + "\n: 1\n").encode(),
        "binary": lambda t: bytes(range(256)) * 20,
        "random": lambda t: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9,
        "zip": lambda t: b"PK\x03\x04" + b"\0" * 100,
        "utf-16": lambda t: t.encode("utf-16"),
        "utf-16-le": lambda t: t.encode("utf-16-le"),
        "utf-32": lambda t: t.encode("utf-32"),
        "latin-1": lambda t: (t + "notes: \xe9t\xe9\n").encode("latin-1"),
        "surrogate bytes": lambda t: (t + "notes: ").encode() + b"\xed\xa0\x80\n",
        "surrogate escape": lambda t: (t + 'notes: "\\ud800"\n').encode(),
        "NUL": lambda t: (t + "notes: a\0b\n").encode(),
        "escaped NUL in a name": lambda t: t.replace(t.splitlines()[0], 'name: "a\\0b"').encode(),
        "control": lambda t: (t + "notes: a\x07b\n").encode(),
        "escape": lambda t: (t + "notes: \x1b[31mred\n").encode(),
        "tab": lambda t: (t + "sweep:\n\tlayer: all\n").encode(),
        "unclosed quote": lambda t: (t + 'notes: "abc\n').encode(),
        "unclosed bracket": lambda t: (t + "notes: [a, b\n").encode(),
        "bad indent": lambda t: (t + "notes: a\n  b: c\n").encode(),
        "list for a file": lambda t: b"- " + t.encode().replace(b"\n", b"\n  "),
        "colon": lambda t: (t + "notes: a: b: c\n").encode(),
        "half": lambda t: t.encode()[: len(t) // 2].rsplit(b":", 1)[0],
        "list as a key": lambda t: (t + "? [a, b]\n: 1\n").encode(),
        "map as a key": lambda t: (t + "? {a: b}\n: 1\n").encode(),
        "null as a key": lambda t: (t + "~: 1\n").encode(),
        "number as a key": lambda t: (t + "1: 1\n").encode(),
        "nan as a key": lambda t: (t + ".nan: 1\n.NaN: 2\n").encode(),
        "true as a key": lambda t: (t + "true: 1\n").encode(),
        "sexagesimal": lambda t: (t + "seed: 1:30\n").encode(),
        "huge sexagesimal": lambda t: (t + "memory: " + "1:" * 4000 + "1\n").encode(),
        "octal": lambda t: (t + "batch_size: 0o17\n").encode(),
        "huge integer": lambda t: (t + "batch_size: 1" + "0" * 5000 + "\n").encode(),
        "huge hex": lambda t: (t + "batch_size: 0x" + "f" * 100_000 + "\n").encode(),
        "huge exponent": lambda t: (t + "memory: 1.0e+999999999\n").encode(),
        "directive": lambda t: b"%YAML 9.9\n---\n" + t.encode(),
        "tag directive": lambda t: b"%TAG ! tag:yaml.org,2002:python/\n---\n" + t.encode() + b"notes: !object:os.system x\n",
        "json with a comment": lambda t: b'{"name": "x" // no\n}',
        "line separators": lambda t: "name: x\u2028model: y".encode(),
        "carriage returns": lambda t: (t.replace("\n", "\r") + "name: again\r").encode(),
        "crlf twice": lambda t: (t + "name: again\n").replace("\n", "\r\n").encode(),
    }


BOMBS = _bombs()


def no_yaml(draw: st.DrawFn) -> BadFile:
    name = draw(st.sampled_from(sorted(valid())))
    what = draw(st.sampled_from(sorted(BOMBS)))
    base = {k: v for k, v in valid()[name].items() if k not in ("notes", "sweep", "generate", "seed")}
    return BadFile(f"{name}: {what}", BOMBS[what](written(base).decode()))


def condition_name(draw: st.DrawFn) -> BadFile:
    name = draw(st.sampled_from(_CONDITION_NAMES))
    base = valid()["demo"]
    conditions = {name: base["conditions"]["zero"], **base["conditions"]}
    return BadFile(f"conditions.{name[:40]!r}", written({**base, "conditions": conditions}), ("conditions",))


def two_at_once(draw: st.DrawFn) -> BadFile:
    """Two breakages of one file: the error speaks of one of them."""
    base = draw(st.sampled_from(sorted(valid())))
    first = draw(st.sampled_from([k for k in keys() if k[0] == base and len(k[1]) == 1]))
    second = draw(st.sampled_from(["zzz", "modle", "capture_"]))
    value = put(put(valid()[base], first[1], draw(st.sampled_from(wrong_values(first[2])))), (second,), 1)
    return BadFile(f"{base}: {_dotted(first[1])} and {second}", written(value))


#: (how, weight)
HOW = [(wrong_type, 8), (unknown_key, 4), (unknown_plugin, 2), (missing_key, 1), (impossible, 6), (no_yaml, 4), (condition_name, 1), (two_at_once, 1)]


@st.composite
def bad_files(draw: st.DrawFn) -> BadFile:
    """Draw a bad experiment file."""
    how = draw(st.sampled_from([how for how, weight in HOW for _ in range(weight)]))
    return how(draw)
