"""The plugin manager: built-ins and installed packages through the same hooks; what fails is named and left out."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pluggy

from codi_engine.core import hookspecs
from codi_engine.core.calling import BUILTIN, calling, remember
from codi_engine.core.contributed import Problem, called, fault, is_collection, left_out, other_specification, said, unknown_hooks
from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Analysis, Dataset, Intervention, Metric, Model, Plugin, SaeFormat, Tracker

KINDS: dict[str, type[Plugin[Any]]] = {
    "model": Model,
    "dataset": Dataset,
    "intervention": Intervention,
    "metric": Metric,
    "analysis": Analysis,
    "tracker": Tracker,
    "sae_format": SaeFormat,
}
#: kind → the hook that contributes it
HOOKS = {kind: "analyses" if kind == "analysis" else f"{kind}s" for kind in KINDS}
ENVIRONMENT = "CODI_ENGINE_PLUGINS"


@dataclass(frozen=True)
class Registered:
    """One plugin class and the package it came with."""

    kind: str
    name: str
    package: str
    version: str
    cls: type[Plugin[Any]]

    @property
    def full_name(self) -> str:
        """``package/name``, which is never ambiguous."""
        return f"{self.package}/{self.name}"


class Plugins:
    """All plugins of one process; made by :func:`plugin_manager`.

    ``problems`` names what was left out, and why; ``hook`` calls the lifecycle hooks.
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.problems: list[Problem] = []
        self.registered: list[Registered] = []
        self.hook = self.manager.hook
        self._titles: dict[str, str] = {}

    # ------------------------------------------------------------------------------------- registering

    def register(self, module: object, package: str, version: str, entry: str = "") -> None:
        """Register a module's hooks and collect its classes; anything wrong with it is a problem, not a crash.

        Parameters
        ----------
        module: the module (or object) whose functions are marked ``@hookimpl``
        package: the distribution it came with; the first half of its plugins' full names
        entry: name of the entry point, where a distribution has several
        """
        name = f"{package}:{entry}" if entry else package
        try:
            wrong, unknown = other_specification(module, package), unknown_hooks(module)
        except Exception as error:  # whatever a module's own __getattr__ and __dir__ do
            wrong = f"cannot be registered: {said(error)}"
        if wrong:
            self._problem(package, version, wrong)
            return
        try:
            self.manager.register(module, name=name)
        except Exception as error:  # signatures that do not fit, a name that stands twice, or what a module's own __getattr__ raises
            self._problem(package, version, f"cannot be registered: {_last_line(error)}")
            if not isinstance(error, ValueError) and self.manager.has_plugin(name):  # pluggy leaves it half registered
                self.manager.unregister(name=name)
            return
        self._titles[name] = f"{package} {version}"
        for _, what in unknown:
            self._problem(package, version, what)
        for kind in KINDS:
            self._collect(kind, module, package, version)

    def _problem(self, package: str, version: str, what: str) -> None:
        self.problems.append(Problem(package, version, what))

    def _collect(self, kind: str, module: object, package: str, version: str) -> None:
        hook = HOOKS[kind]
        function = getattr(module, hook, None)
        if function is None or not hasattr(function, f"{hookspecs.PROJECT}_impl"):
            return
        try:
            returned = function()
            classes = list(returned) if is_collection(returned) else None
        except (Exception, SystemExit) as error:  # a third party's code may raise anything; it must not take the engine down
            self._problem(package, version, f"{hook}() failed: {said(error)}")
            return
        if classes is None:
            self._problem(package, version, f"{hook}() must return a list of classes; it returned {returned!r:.120}")
            return
        if getattr(module, hook, None) is not function:  # importing the submodule of that name put it in the function's place
            self._problem(package, version, f"{hook}() is hidden by the submodule '{hook}'; give the submodule another name")
        for cls in classes:
            known = {r.name for r in self.registered if r.kind == kind and r.package == package}
            wrong = fault(cls, kind, KINDS[kind], schema=package != BUILTIN) or ("the name stands twice" if cls.name in known else "")
            if wrong:
                self._problem(package, version, f"{kind} '{called(cls)}' of {hook}() left out: {wrong}")
            else:
                self.registered.append(Registered(kind, cls.name, package, version, cls))
                remember(self.registered[-1])

    def observers(self, hook: str) -> Iterator[tuple[str, Callable[[Mapping[str, Any]], Any]]]:
        """Yield (package and version, call with the hook's arguments) of each that observes a moment, in pluggy's order: the last registered first.

        One by one, so that one that fails is named and keeps no other from being called.
        """
        for one in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            if not (one.wrapper or one.hookwrapper):
                yield self._titles.get(one.plugin_name, one.plugin_name), partial(_call, one)

    # --------------------------------------------------------------------------------------- answering

    def names(self, kind: str) -> list[str]:
        """Return the names by which plugins of a kind can be asked for."""
        return sorted({name for r in self.registered if r.kind == kind for name in (r.name, r.full_name)})

    def get(self, kind: str, name: str, where: str = "plugin") -> type[Any]:
        """Return a plugin class by its name, or ``package/name`` where two packages have one of that name.

        A built-in keeps its short name; others of the same name need their package's.
        """
        return self.find(kind, name, where).cls

    def find(self, kind: str, name: str, where: str = "plugin") -> Registered:
        """Return a plugin and its package, as :meth:`get` finds it.

        Raises
        ------
        UserError: unknown (what was left out is named, it may be the one), or in several packages
        """
        mine = [r for r in self.registered if r.kind == kind]
        exact = [r for r in mine if r.full_name == name]
        short = [r for r in mine if r.name == name]
        builtin = [r for r in short if r.package == BUILTIN]
        found = exact or (builtin if builtin else short)
        if len(found) > 1:
            raise UserError(f"{where}: '{name}' is in several packages; write one of {', '.join(r.full_name for r in found)}")
        if not found:
            raise UserError(f"{where}: unknown {kind} '{name}'; {nearest(name, self._written_or_short(mine))}{left_out(self.problems, name)}")
        return found[0]

    def _written_or_short(self, items: Sequence[Registered]) -> list[str]:
        """Return names as they are written; where several packages have one, the short one, whose error names them all."""
        names = (self.written(r) if any(o.package == BUILTIN for o in items if o.name == r.name) else r.name for r in items)
        return list(dict.fromkeys(names))

    def written(self, item: Registered) -> str:
        """Return how an experiment file names a plugin: by its short name where that is enough."""
        others = [r for r in self.registered if r.kind == item.kind and r.name == item.name and r is not item]
        return item.name if not others or item.package == BUILTIN else item.full_name

    def build(self, kind: str, mapping: Any, where: str, source: str) -> Any:
        """Return a plugin with validated options from ``{plugin: name, **options}`` or a bare name."""
        from codi_engine.core.experiment import PluginRef
        from codi_engine.core.explaining import plugin_options

        if isinstance(mapping, PluginRef):
            name, options = mapping.plugin, mapping.options
        elif isinstance(mapping, str):
            name, options = mapping, {}
        elif isinstance(mapping, Mapping) and isinstance(mapping.get("plugin"), str):
            name, options = mapping["plugin"], {k: v for k, v in mapping.items() if k != "plugin"}
        else:
            raise UserError(f"{source}: {where}: write {{plugin: name, …}}; got {mapping!r}")
        cls = self.get(kind, name, f"{source}: {where}.plugin")
        checked = plugin_options(cls, options, where, source)
        with calling(cls, "__init__"):
            return cls(checked)


def _call(one: pluggy.HookImpl, facts: Mapping[str, Any]) -> Any:
    """Call one package's observer with those of the hook's arguments that it names."""
    return one.function(*(facts[name] for name in one.argnames))


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def plugin_manager(load: bool = True) -> Plugins:
    """Return a fresh manager with the built-ins, and with what is installed if ``load``.

    The environment's ``CODI_ENGINE_PLUGINS`` (a comma-separated list of distributions; empty for none) restricts what
    is loaded beside the built-ins.
    """
    from codi_engine import __version__
    from codi_engine.plugins import builtin

    plugins = Plugins()
    plugins.register(builtin, BUILTIN, __version__)
    if load:
        _load_installed(plugins)
    return plugins


def _load_installed(plugins: Plugins) -> None:
    """Load entry points one by one, in the order of their distributions' names."""
    found = [(e.dist, e) for e in importlib.metadata.entry_points(group=hookspecs.PROJECT) if e.dist is not None]
    names = os.environ.get(ENVIRONMENT)
    if names is not None:
        wanted = {_normal(n): n.strip() for n in names.split(",") if n.strip()}
        found = [(d, e) for d, e in found if _normal(d.name) in wanted]
        for name in wanted.keys() - {BUILTIN} - {_normal(d.name) for d, _ in found}:
            plugins.problems.append(Problem(wanted[name], "", f"named in {ENVIRONMENT}, but no such package with codi-engine plugins is installed"))
    for distribution, entry in sorted(found, key=lambda f: (_normal(f[0].name), f[1].name)):
        package, version = distribution.name, distribution.version
        try:
            module = entry.load()
        except (Exception, SystemExit) as error:  # importing a third party's module may raise anything; name it and go on
            plugins.problems.append(Problem(package, version, f"cannot be imported: {said(error)}"))
            continue
        plugins.register(module, package, version, entry.name)


def _normal(name: str) -> str:
    """Return a distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
