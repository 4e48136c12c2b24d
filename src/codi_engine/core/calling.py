"""Whose code failed: the one place where an exception of a plugin becomes an error that names package, plugin and method."""

from __future__ import annotations

import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from codi_engine.core.errors import CodiEngineError, PluginError, of_the_machine
from codi_engine.store.errors import StoreError

if TYPE_CHECKING:
    from codi_engine.core.plugins import Registered

#: class → the package that contributed it; a fact about the class, the same for every manager
_REGISTERED: WeakKeyDictionary[type, Registered] = WeakKeyDictionary()

AFTERWARDS = "What is committed stays; after mending it the same command goes on."
BUILTIN = "codi-engine"


def remember(item: Registered) -> None:
    """Keep which package a class came with."""
    _REGISTERED[item.cls] = item


def titled(plugin: Any) -> str:
    """Say which plugin an instance or a class is: ``intervention 'scale' (codi-scale 1.2)``."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    item = next((_REGISTERED[c] for c in cls.__mro__ if c in _REGISTERED), None)
    if item is None:  # built by hand, in a test or a notebook
        return f"plugin '{getattr(cls, 'name', cls.__name__)}' ({cls.__module__})"
    return f"{item.kind} '{item.name}' ({item.package} {item.version})"


def wrong(plugin: Any, method: str, what: str, defect: bool = True) -> PluginError:
    """Return the error of a method that returned what it must not; ``defect``: no option of the user's can be the reason."""
    return PluginError(f"{titled(plugin)}: {method}() {what}.\n{_remedy(plugin, defect)}")


class calling(AbstractContextManager[None]):
    """Turn what the plugin's own code raises into a PluginError; messages to the user, lack of memory and a full disk pass as they are.

    sys.exit() in a plugin is its failure too: it must not end a run as if that were finished.

    Costs a fraction of a microsecond where nothing is raised: it stands around calls for whole batches.
    """

    __slots__ = ("method", "plugin")

    def __init__(self, plugin: Any, method: str) -> None:
        self.plugin, self.method = plugin, method

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not isinstance(error, (Exception, SystemExit)) or isinstance(error, (CodiEngineError, StoreError)) or of_the_machine(error):
            return
        said = " ".join(str(error).split())
        what = f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
        raise PluginError(f"{titled(self.plugin)} failed in {self.method}(){_place(self.plugin, error)}: {what}.\n{_remedy(self.plugin)}") from error


def _remedy(plugin: Any, defect: bool = True) -> str:
    cls = plugin if isinstance(plugin, type) else type(plugin)
    ours = defect and cls.__module__.partition(".")[0] == "codi_engine"
    return f"{AFTERWARDS} {'This is a defect of codi-engine; ' if ours else ''}--debug shows the traceback."


def _place(plugin: Any, error: BaseException) -> str:
    """Say the innermost line of the plugin's own package that was reached."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    package = cls.__module__.partition(".")[0]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] == package and module != __name__ and not module.startswith("codi_engine.core"):
            return f", {Path(frame.f_code.co_filename).name}:{line}"
    return ""
