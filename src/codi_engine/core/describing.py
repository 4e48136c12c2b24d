"""Plugins in words: their options with types and defaults as a reader says them, and an example that is valid."""

from __future__ import annotations

import inspect
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from codi_engine.core.plugin import Options, Plugin
    from codi_engine.core.plugins import Registered

_WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "NoneType": "none", "Any": "any value", "dict": "mapping"}
_MANY = {"text": "texts", "whole number": "whole numbers", "number": "numbers", "true or false": "true or false", "mapping": "mappings"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
#: what stands for a required text, by the option's name
_TEXTS = {
    "path": "data/file.jsonl",
    "checkpoint": "checkpoints/mine",
    "base": "openai-community/gpt2",
    "sae": "demo",
    "run": "runs/other",
    "pattern": "(?P<given>\\d+)",
}
_TEXTS |= {"vector": "direction.npy", "difference": "correct", "url": "https://example.org", "command": "echo", "numbers": "given"}
#: what an option of a usual name means where its own docstring does not say it
_USUAL = {
    "dtype": "type of the weights' numbers",
    "device": "auto, cpu, cuda, cuda:1 …; several, side by side: cuda:0,cuda:1, or all",
    "lora_r": "rank of the LoRA update; checked against the file",
    "latents": "number of latent steps",
    "projection_width": "width of the projection's hidden layer, where the file does not say it",
    "layer_norm": "whether the projection ends in a LayerNorm, where the file does not say it",
    "remove_eos": "the prompt ends in bot; false: in eos, bot",
    "merge": "add the LoRA update to the base's weights; false keeps it beside them",
    "answer_prefix": "words after which the answer's number is read",
    "tokenizer": "directory or Hub id of another tokenizer",
    "revision": "branch, tag or commit on the Hub",
    "trust_remote_code": "run code that comes with the model",
    "text_field": "the field with the text",
    "question_field": "the field with the question",
    "answer_field": "the field with the answer",
    "on_invalid": "records that cannot be used: error stops, drop leaves them out and counts them",
    "limit": "the first so many examples; a larger limit later extends the run",
    "sample": "so many examples of each value of a field, drawn with a seed",
    "q": "false discovery rate of the family of tests",
    "confidence": "of the intervals",
    "correction": "for many tests: Benjamini-Hochberg, Benjamini-Yekutieli, Bonferroni",
    "top": "rows listed",
    "draw": "so many are drawn in figures",
    "permutations": "random exchanges of a permutation test",
    "chains": "longest chains listed",
    "seed": "of what is drawn at random",
    "memory": "GB that may be held at a time",
    "threads": "how many compute (default: as many as there are cores)",
    "metric": "which metric",
    "condition": "which condition",
}


@dataclass(frozen=True)
class Option:
    """One option. ``default`` is None in words where it is required."""

    name: str
    type: str
    required: bool
    default: Any
    help: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; no ``default`` where there is none."""
        value = asdict(self)
        if self.required:
            del value["default"]
        return value


# ---------------------------------------------------------------------------------------------------- help


def first_line(cls: type[Any]) -> str:
    """Return the first line of a class' help."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0].replace("``", "")


def flowing(doc: str | None) -> str:
    """Return a docstring whose paragraphs are one line each, to be wrapped as wide as the screen is; lists and code stay."""
    text = inspect.cleandoc(doc or "").replace("``", "")
    return re.sub(r"(?<=\S)\n(?=[^\s\-*])", " ", text)


def options_of(options: type[Options]) -> list[Option]:
    """Return a plugin's options in their order: from annotations, and from the docstring that names them in backticks."""
    helps = _helps(options)
    return [_option(name, field, helps.get(name, "")) for name, field in options.model_fields.items()]


def _option(name: str, field: FieldInfo, text: str) -> Option:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    default = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    return Option(
        name,
        in_words(field.annotation, field.metadata),
        field.is_required(),
        default,
        field.description or text or _USUAL.get(name, ""),
    )


def _helps(options: type[Options]) -> dict[str, str]:
    """Return option → its help, from the docstrings of the class and of those it inherits options from."""
    found: dict[str, str] = {}
    for cls in options.__mro__:
        if issubclass(cls, BaseModel) and cls.__doc__ and cls is not BaseModel:
            for name, text in _named(" ".join(inspect.cleandoc(cls.__doc__).split()), list(options.model_fields)).items():
                found.setdefault(name, text)
    return found


def _named(doc: str, names: Sequence[str]) -> dict[str, str]:
    """Cut a docstring at the options that it names: ``factor``: what values are multiplied by."""
    marks = [m for m in re.finditer(r"``(\w+)(?:: [^`]*)?``", doc) if m[1] in names]
    first: dict[str, re.Match[str]] = {}
    for mark in marks:
        begins = not doc[: mark.start()] or doc[: mark.start()].rstrip()[-1] in ".;,)"
        if mark[1] not in first and (begins or not any(m[1] == mark[1] and m.start() > mark.start() for m in marks)):
            first[mark[1]] = mark
    cuts = sorted(first.values(), key=lambda m: m.start())
    texts: dict[str, str] = {}
    ends = [*(m.start() for m in cuts[1:]), len(doc)]
    for mark, end in zip(cuts, ends, strict=bool(cuts)):
        text = _trimmed(doc[mark.end() : end], mark)
        texts[mark[1]] = "" if text == mark[1] else text
    for name, after in reversed(list(itertools.pairwise(texts))):  # ``low``, ``high``: said of both
        texts[name] = texts[name] or texts[after]
    return texts


def _trimmed(text: str, mark: re.Match[str]) -> str:
    whole = mark[0].strip("`")
    text = text.strip()
    text = text[1:] if text.startswith(":") else f"{whole} {text}" if text and text[0].isalpha() else text
    text = re.sub(r"(?:[;,]| (?:or|and))*\s*(?:or|and)?[;,\s]*$", "", text.replace("``", "")).strip()
    return text.rstrip(".") if text.count(".") <= 1 else text


# --------------------------------------------------------------------------------------------------- types


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Say a type plainly: ``list of numbers``, ``one of last, mean, max``, ``number > 0, or none``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return in_words(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        parts = [in_words(a, metadata if a in (int, float) else ()) for a in arguments if a is not type(None)]
        none = ", or none" if type(None) in arguments else ""
        return " or ".join(dict.fromkeys(parts)) + none
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        values = in_words(arguments[1]) if len(arguments) > 1 else "any value"
        return "mapping" if values == "any value" else f"mapping of names to {_MANY.get(values, values)}"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"list of {len(arguments)} {_many(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, (Sequence, set, frozenset)):
        return f"list of {_many(arguments[0])}" if arguments else "list"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"mapping of {', '.join(annotation.model_fields)}"
    name = getattr(annotation, "__name__", str(annotation))
    return f"{_WORDS.get(name, name)}{_bounds(metadata)}"


def _many(annotation: Any) -> str:
    word = in_words(annotation)
    return _MANY.get(word, f"lists of {word.removeprefix('list of ')}" if word.startswith("list of ") else f"({word})" if " or " in word else word)


def _bounds(metadata: Sequence[Any]) -> str:
    said = [f"{sign} {getattr(m, key):g}" for m in metadata for key, sign in _BOUNDS.items() if getattr(m, key, None) is not None]
    return f" {', '.join(said)}" if said else ""


# ------------------------------------------------------------------------------------------------ examples


def example_options(options: type[Options]) -> dict[str, Any]:
    """Return options that are valid: placeholders for what is required, and for what else is needed together."""
    fields = options.model_fields
    required = {name: placeholder(name, f.annotation, f.metadata) for name, f in fields.items() if f.is_required()}
    more = {name: placeholder(name, f.annotation, f.metadata) for name, f in fields.items() if not f.is_required()}
    for count in range(min(len(more), 3) + 1):
        for names in itertools.combinations(more, count):
            chosen = {**required, **{n: more[n] for n in names}}
            if _valid(options, chosen):
                return chosen or _shown_defaults(options)
    return required


def _shown_defaults(options: type[Options]) -> dict[str, Any]:
    """Return the first option that has a default worth showing."""
    simple = {o.name: o.default for o in options_of(options) if isinstance(o.default, (int, float, str)) and o.default != ""}
    first = dict(itertools.islice(simple.items(), 1))
    return first if _valid(options, first) else {}


def _valid(options: type[Options], chosen: Mapping[str, Any]) -> bool:
    try:
        options.model_validate(dict(chosen))
    except (ValidationError, ValueError, TypeError):
        return False
    return True


def placeholder(name: str, annotation: Any, metadata: Sequence[Any] = ()) -> Any:
    """Return a plausible value of a type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return placeholder(name, arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return placeholder(name, next(a for a in arguments if a is not type(None)), metadata)
    if origin is Literal:
        return arguments[0]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {}
    if isinstance(origin, type) and issubclass(origin, (Sequence, tuple, set, frozenset)):
        return [placeholder(name, a) for a in arguments if a is not Ellipsis]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {n: placeholder(n, f.annotation, f.metadata) for n, f in annotation.model_fields.items() if f.is_required()}
    if annotation in (int, float):
        return _number(annotation, metadata)
    return {bool: True, str: _TEXTS.get(name, name.upper())}.get(annotation, name.upper())


def _number(kind: type[int] | type[float], metadata: Sequence[Any]) -> int | float:
    low = next((getattr(m, "ge", None) or getattr(m, "gt", None) for m in metadata if getattr(m, "ge", None) or getattr(m, "gt", None)), 0)
    high = next((getattr(m, "le", None) or getattr(m, "lt", None) for m in metadata if getattr(m, "le", None) or getattr(m, "lt", None)), None)
    value = max(1, low + 1 if low else 1)
    return kind(value if high is None or value < high else (low + high) / 2)


def example_yaml(item: Registered, written: str) -> str:
    """Return the part of an experiment file in which a plugin stands, with options that are valid."""
    if item.kind == "sae_format":
        shortcut = next(iter(getattr(item.cls, "shortcuts", {})), "saes/layer_{layer}")
        return _dumped({"capture": [{"sae": shortcut, "features": "all", "layers": [0]}]})
    return _dumped(dict(_placed(item.kind, {"plugin": written, **example_options(item.cls.Options)}, item.cls)))


def _placed(kind: str, ref: dict[str, Any], cls: type[Plugin[Any]]) -> Iterator[tuple[str, Any]]:
    if kind == "intervention":
        ends = bool(getattr(cls, "ends_latents", False))
        sae = "sae" in ref
        place = {"site": "latent_in" if ends else "resid_post", **({"tokens": "last"} if sae else {})}
        pairs = {"direction": "denoise"} if getattr(cls, "source", None) == "partner" else {}
        yield "intervention", {"plugin": ref["plugin"], **place, **pairs, **{k: v for k, v in ref.items() if k != "plugin"}}
        yield "sweep", {"step": "all"} if ends else {"layer": "all"} if sae else {"layer": "all", "step": "all"}
        return
    single = {"model": "model", "dataset": "data"}.get(kind)
    if kind == "model" and "path" in ref:
        ref = {**ref, "path": "models/mine"}
    several = {"metric": "metrics", "analysis": "analyses", "tracker": "trackers"}.get(kind, kind)
    if single is not None:
        yield single, ref
    else:
        yield several, [ref if len(ref) > 1 else ref["plugin"]]


def _dumped(value: Mapping[str, Any]) -> str:
    """Return YAML as one writes it by hand: keys in blocks, what stands in them in one line."""
    lines = []
    for key, part in value.items():
        text = yaml.safe_dump(part, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000).strip()
        lines.append(f"{key}: {text.removesuffix('...').strip()}")
    return "\n".join(lines)
