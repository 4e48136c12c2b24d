"""The plugin manager: built-ins and installed packages through the same hooks; what fails is named and left out."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pluggy

from codi_engine.core import hookspecs
from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import SPEC_VERSION, Analysis, Dataset, Intervention, Metric, Model, Options, Plugin, Tracker

KINDS: dict[str, type[Plugin[Any]]] = {
    "model": Model,
    "dataset": Dataset,
    "intervention": Intervention,
    "metric": Metric,
    "analysis": Analysis,
    "tracker": Tracker,
}
_HOOKS = {"analysis": "analyses"}
ENVIRONMENT = "CODI_ENGINE_PLUGINS"


@dataclass(frozen=True)
class Registered:
    """One plugin class and the package it came with."""

    kind: str
    name: str
    package: str
    version: str
    cls: type[Plugin[Any]]


class Plugins:
    """All plugins of one process; made by :func:`plugin_manager`.

    ``problems`` names what was left out, and why; ``hook`` calls the lifecycle hooks.
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.problems: list[str] = []
        self.registered: list[Registered] = []
        self.hook = self.manager.hook

    # ------------------------------------------------------------------------------------- registering

    def register(self, module: ModuleType, package: str, version: str) -> None:
        """Register a module's hooks and collect its classes; anything wrong with it is a problem, not a crash."""
        stated = getattr(module, "codi_engine_spec", SPEC_VERSION)
        if stated != SPEC_VERSION:
            self.problems.append(f"{package} {version}: written for hook specification {stated}; this is {SPEC_VERSION}")
            return
        try:
            name = self.manager.register(module, name=package)
            self.manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            self.problems.append(f"{package} {version}: {str(error).splitlines()[-1]}")
            if self.manager.has_plugin(package):
                self.manager.unregister(name=package)
            return
        assert name is not None
        for kind in KINDS:
            self._collect(kind, module, package, version)

    def _collect(self, kind: str, module: ModuleType, package: str, version: str) -> None:
        function = getattr(module, _HOOKS.get(kind, f"{kind}s"), None)
        if function is None or not hasattr(function, f"{hookspecs.PROJECT}_impl"):
            return
        try:
            classes = function()
        except Exception as error:  # a third party's code may raise anything; it must not take the engine down
            self.problems.append(f"{package} {version}: {kind}s() failed: {type(error).__name__}: {error}")
            return
        for cls in classes:
            wrong = _wrong(cls, KINDS[kind])
            known = {r.name for r in self.registered if r.kind == kind and r.package == package}
            if wrong or cls.name in known:
                self.problems.append(f"{package} {version}: {kind} {getattr(cls, 'name', cls)!r} left out: {wrong or 'the name stands twice'}")
                continue
            self.registered.append(Registered(kind, cls.name, package, version, cls))

    # --------------------------------------------------------------------------------------- answering

    def names(self, kind: str) -> list[str]:
        """Return the names by which plugins of a kind can be asked for."""
        return sorted({r.name for r in self.registered if r.kind == kind} | {f"{r.package}/{r.name}" for r in self.registered if r.kind == kind})

    def get(self, kind: str, name: str, where: str = "plugin") -> type[Any]:
        """Return a plugin class by its name, or ``package/name`` where two packages have one of that name.

        A built-in keeps its short name; others of the same name need their package's.
        """
        mine = [r for r in self.registered if r.kind == kind]
        exact = [r for r in mine if f"{r.package}/{r.name}" == name]
        short = [r for r in mine if r.name == name]
        builtin = [r for r in short if r.package == "codi-engine"]
        found = exact or (builtin if builtin else short)
        if len(found) > 1:
            raise UserError(f"{where}: '{name}' is in several packages; write one of {', '.join(f'{r.package}/{r.name}' for r in found)}")
        if not found:
            raise UserError(f"{where}: unknown {kind} '{name}'; {nearest(name, [r.name for r in mine])}")
        return found[0].cls

    def build(self, kind: str, mapping: Any, where: str, source: str) -> Any:
        """Return a plugin with validated options from ``{plugin: name, **options}`` or a bare name."""
        from codi_engine.core.experiment import PluginRef, plugin_options

        if isinstance(mapping, PluginRef):
            name, options = mapping.plugin, mapping.options
        elif isinstance(mapping, str):
            name, options = mapping, {}
        elif isinstance(mapping, Mapping) and isinstance(mapping.get("plugin"), str):
            name, options = mapping["plugin"], {k: v for k, v in mapping.items() if k != "plugin"}
        else:
            raise UserError(f"{source}: {where}: write {{plugin: name, …}}; got {mapping!r}")
        cls = self.get(kind, name, f"{source}: {where}.plugin")
        return cls(plugin_options(cls, options, where, source))


def _wrong(cls: Any, base: type[Plugin[Any]]) -> str:
    """Say what keeps a contributed class from being a plugin; empty when nothing does."""
    if not (isinstance(cls, type) and issubclass(cls, base)):
        return f"not a subclass of {base.__name__}"
    if not isinstance(getattr(cls, "name", None), str) or not cls.name:
        return "has no name"
    if not (isinstance(getattr(cls, "Options", None), type) and issubclass(cls.Options, Options)):
        return "its Options is not a subclass of codi_engine.core.plugin.Options"
    if not (cls.__doc__ or "").strip():
        return "has no docstring, which is its help"
    missing = getattr(cls, "__abstractmethods__", frozenset())
    return f"lacks {', '.join(sorted(missing))}" if missing else ""


def plugin_manager(load: bool = True) -> Plugins:
    """Return a fresh manager with the built-ins, and with what is installed if ``load``.

    ``CODI_ENGINE_PLUGINS`` (a comma-separated list of distributions; empty for none) restricts what is loaded.
    """
    from codi_engine import __version__
    from codi_engine.plugins import builtin

    plugins = Plugins()
    plugins.register(builtin, "codi-engine", __version__)
    if load:
        _load_installed(plugins)
    return plugins


def _load_installed(plugins: Plugins) -> None:
    allowed = os.environ.get(ENVIRONMENT)
    names = None if allowed is None else {n.strip() for n in allowed.split(",") if n.strip()}
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        package = distribution.metadata["Name"]
        if package is None or package in seen or (names is not None and package not in names):
            continue
        entries = [e for e in distribution.entry_points if e.group == hookspecs.PROJECT]
        if not entries:
            continue
        seen.add(package)
        for entry in entries:
            try:
                module = entry.load()
            except Exception as error:  # importing a third party's module may raise anything; name it and go on
                plugins.problems.append(f"{package} {distribution.version}: cannot be imported: {type(error).__name__}: {error}")
                continue
            plugins.register(module, package, distribution.version)
