"""What pydantic finds wrong with a mapping of the user's, in one line: file:line, field, what is wrong, what to write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Options, Plugin
from codi_engine.core.yamlfile import line_of


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not re.match(r"(function-|is-instance|literal|list\[|dict\[|int$|str$|float$|bool$|constrained|CodeSpec$)", str(part)) or not text:
            text += f".{part}" if text else str(part)
    return text


def explain(error: ValidationError, model: type[BaseModel], source: str, lines: Mapping[str, int], prefix: str = "", more: Sequence[str] = ()) -> str:
    """Turn pydantic's findings into one line: file:line, field, what is wrong, what to write; ``more`` names keys that are known beside the model's."""
    finding = _telling(error)
    field = _dotted(finding["loc"])
    path = f"{prefix}.{field}" if prefix and field else prefix or field
    at = f"{source}{line_of(lines, path)}: {path}" if path else source
    kind, given = finding["type"], finding.get("input")
    if kind == "extra_forbidden":
        name, known = str(finding["loc"][-1]), _known_keys(model, finding["loc"][:-1])
        return f"{at}: unknown key '{name}'; {nearest(name, [*known, *(key for key in more if key not in known)])}"
    if kind == "missing":
        return f"{at}: is missing; add {finding['loc'][-1]}:"
    if isinstance(given, str) and kind.startswith(("float", "int")) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", given):
        written = f"{float(given):.6g}" if kind.startswith("int") else f"{float(given):.1e}"
        return f"{at}: YAML reads {given} as text; write {written}"
    if kind == "value_error":
        return f"{at}: {finding['ctx']['error']}"
    shown = repr(given)
    if kind == "string_pattern_mismatch":
        return f"{at}: must be letters, digits, dash or underscore, a letter first; got {shown}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        example = " such as {plugin: NAME}" if "plugin" in _known_keys(model, finding["loc"]) else ""
        return f"{at}: must be a mapping{example}; got {_cut(shown)}"
    if kind == "list_type":
        return f"{at}: must be a list; got {_cut(shown)}"
    return f"{at}: {finding['msg'].lower().replace('input should', 'should')}; got {_cut(shown)}"


def _cut(text: str) -> str:
    return text if len(text) < 80 else text[:77] + "…"


def _telling(error: ValidationError) -> Any:
    """Return the first finding (of those that say more than that a key is missing, if there are any), of the form that the value comes closest to."""
    found = sorted(error.errors(), key=lambda f: f["type"] == "missing")
    same = [f for f in found if f["loc"][:1] == found[0]["loc"][:1]]
    return max(same, key=lambda f: (len(f["loc"]), f["type"] == "extra_forbidden"))


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the keys of the model that a location is in."""
    current: Any = model
    for part in location:
        annotation = current.model_fields[part].annotation if isinstance(part, str) and part in getattr(current, "model_fields", {}) else None
        found = _models_in(annotation)
        current = found[0] if found else current
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]


def plugin_options(
    plugin: type[Plugin[Any]], mapping: Mapping[str, Any], where: str, source: str, lines: Mapping[str, int] | None = None, more: Sequence[str] = ()
) -> Options:
    """Validate a plugin's options, with errors that name file, field and the nearest known keys (``more``: those beside the plugin's)."""
    return validated(plugin.Options, mapping, where, source, lines, more)


def validated(
    model: type[Options], mapping: Mapping[str, Any], where: str, source: str, lines: Mapping[str, int] | None = None, more: Sequence[str] = ()
) -> Options:
    """Validate a mapping of the file at ``where``."""
    try:
        return model.model_validate(dict(mapping))
    except ValidationError as error:
        raise UserError(explain(error, model, source, lines or {}, where, more)) from None
