"""What is wrong with what a package contributes: said in one line that names package, version, hook and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from codi_engine.core import hookspecs
from codi_engine.core.errors import nearest
from codi_engine.core.plugin import SPEC_VERSION, Options, Plugin

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: keys that an experiment file reads itself where a plugin of a kind stands; an option of that name would never arrive
RESERVED = {"intervention": ("site", "layer", "step", "position", "head", "direction", "on", "downstream", "tokens")}
#: kind → attribute → what it may say: one of these, or (frozenset) some of these
_KNOWN: dict[str, dict[str, tuple[Any, ...] | frozenset[str]]] = {
    "intervention": {"source": (None, "own", "partner", "donor", "mean", "mean_over_steps")},
    "metric": {
        "needs": frozenset({"generation", "number_logits", "first_logits", "gold", "other", "captures", "natural"}),
        "applies_to": frozenset({"problems", "pairs", "prompts"}),
    },
    "analysis": {"takes": ("one", "many")},
}
HOOK_NAMES = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec"))


@dataclass(frozen=True)
class Problem:
    """Something that was left out, and why. ``version`` is empty where the package is not installed."""

    package: str
    version: str
    what: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {self.what}" if self.version else f"{self.package}: {self.what}"


def left_out(problems: Sequence[Problem], missed: str = "", shown: int = 3) -> str:
    """Return a second line for an error that may come of something left out; empty where nothing was.

    ``missed``: the name that was asked for; what was left out under that name comes alone.
    """
    if not problems:
        return ""
    bare = missed.rpartition("/")[2]
    problems = [p for p in problems if bare and f"'{bare}'" in p.what] or problems
    more = f"; and {len(problems) - shown} more ('codi-engine plugins' lists them)" if len(problems) > shown else ""
    return "\nleft out: " + "; ".join(map(str, problems[:shown])) + more


def said(error: BaseException) -> str:
    """Return an exception in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def other_specification(module: object, package: str) -> str:
    """Say that a package was written for another hook specification, and who has to be upgraded; empty where it fits."""
    stated = getattr(module, "codi_engine_spec", SPEC_VERSION)
    if stated == SPEC_VERSION and not isinstance(stated, bool):
        return ""
    if isinstance(stated, bool) or not isinstance(stated, int):
        return f"codi_engine_spec must be a whole number, the specification it was written for; it is {stated!r}"
    late = package if stated < SPEC_VERSION else "codi-engine"
    return f"written for hook specification {stated}, this codi-engine has {SPEC_VERSION}: upgrade {late}"


def unknown_hooks(module: object) -> list[tuple[str, str]]:
    """Return (name, what is wrong) of functions that are marked as hooks and are none, and of hooks that are not marked."""
    marked = [name for name in dir(module) if hasattr(_member(module, name), f"{hookspecs.PROJECT}_impl")]
    found = [(name, f"{name}() is no hook and is passed over; {nearest(name, HOOK_NAMES)}") for name in marked if name not in HOOK_NAMES]
    for name in marked:
        options = getattr(_member(module, name), f"{hookspecs.PROJECT}_impl")
        if name in HOOK_NAMES and (options.get("wrapper") or options.get("hookwrapper")):
            found.append((name, f"{name}() is marked as a wrapper, of which codi-engine has none, and is passed over; mark it with plain @hookimpl"))
    home = module.__name__ if isinstance(module, ModuleType) else None
    for name in HOOK_NAMES:
        function = _member(module, name)
        if home is not None and name not in marked and callable(function) and getattr(function, "__module__", None) == home:
            found.append((name, f"{name}() is not marked with @hookimpl and is passed over; write 'from codi_engine import hookimpl' and mark it"))
    return found


def _member(module: object, name: str) -> Any:
    try:
        return getattr(module, name, None)
    except Exception:  # a module's __getattr__ may raise anything
        return None


def is_collection(returned: object) -> bool:
    """Say whether a hook returned several things, one after the other; text, mappings and a single class are one."""
    return isinstance(returned, Iterable) and not isinstance(returned, (str, bytes, Mapping, type))


def called(cls: Any) -> str:
    """Return what a contributed thing is called in messages."""
    return str(getattr(cls, "name", None) or getattr(cls, "__name__", None) or repr(cls))


def fault(cls: Any, kind: str, base: type[Plugin[Any]], schema: bool) -> str:
    """Say what keeps a contributed class from being a plugin; empty when nothing does.

    ``schema``: its options are turned into a schema, as the experiment file's is made of them.
    """
    if not (isinstance(cls, type) and issubclass(cls, base)):
        made = " (an instance: return the class itself)" if isinstance(cls, base) else ""
        return f"not a subclass of {base.__name__}{made}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "`name` must be letters, digits, dot, dash or underscore"
    if not (isinstance(getattr(cls, "Options", None), type) and issubclass(cls.Options, Options)):
        return "`Options` is not a subclass of codi_engine.core.plugin.Options"
    if not (cls.__doc__ or "").strip():
        return "has no docstring, which is its help"
    missing: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if missing:
        return f"lacks {', '.join(f'{m}()' for m in sorted(missing))}"
    for attribute, known in _KNOWN.get(kind, {}).items():
        stated = getattr(cls, attribute, None)
        wrong = _strange(stated, known)
        if wrong:
            return f"`{attribute}` {wrong}"
    taken = [f for f in cls.Options.model_fields if f in (*RESERVED.get(kind, ()), "plugin")]
    if taken:
        return f"its option '{taken[0]}' is a key that the experiment file reads itself; call it otherwise"
    return _without_schema(cls.Options) if schema else ""


def _strange(stated: object, known: tuple[Any, ...] | frozenset[str]) -> str:
    """Say why an attribute is none of what is known; empty where it is, or is worked out for each instance."""
    if isinstance(stated, (property, cached_property)):
        return ""
    if isinstance(known, tuple):
        return "" if stated in known else f"must be one of {', '.join(map(repr, known))}; it is {stated!r}"
    if not isinstance(stated, Set):
        return f"must be a set of names, such as frozenset({{{sorted(known)[0]!r}}}); it is {stated!r}"
    strange = sorted(map(str, stated - known))
    return f"holds '{strange[0]}'; {nearest(strange[0], sorted(known))}" if strange else ""


def _without_schema(options: type[Options]) -> str:
    """Say why options cannot be turned into a JSON schema; empty where they can."""
    try:
        options.model_json_schema()
    except Exception as error:  # pydantic and a third party's own validators raise many types
        return f"its options cannot be turned into a schema ({said(error)[:160]}); use numbers, texts, Literal, lists and dictionaries of them"
    return ""
