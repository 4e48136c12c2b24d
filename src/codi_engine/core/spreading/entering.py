"""What a worker must share with the process that gives it work: codi-engine, its plugins, and the runs' directories."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codi_engine.core.errors import UserError
from codi_engine.core.spreading.cluster import named
from codi_engine.core.spreading.failures import Failed
from codi_engine.store.layout import LEDGER
from codi_engine.store.ledger import read_ledger

#: packages whose version the bits of a result may depend on
LIBRARIES = ("torch", "transformers", "numpy", "numba", "scipy", "scikit-learn")
_ENGINE = "codi-engine"


@dataclass(frozen=True)
class Common:
    """What the process that gives the work has.

    Attributes
    ----------
    packages: codi-engine and every package of plugins, with versions and digests
    libraries: other packages with their versions, and Python
    runs: run directory → the hash at the end of its ledger; None where it will grow meanwhile
    folder: the directory from which relative paths count
    """

    packages: Mapping[str, str]
    libraries: Mapping[str, str]
    runs: Mapping[str, str | None]
    folder: str

    @classmethod
    def of(cls, runs: Mapping[str, str | None]) -> Common:
        return cls(packages(), libraries(), dict(runs), os.getcwd())


@dataclass(frozen=True)
class Entered:
    """A worker that may be given work. ``other``: libraries of other versions, in words; ``more``: what its setting adds."""

    host: str
    pid: int
    other: str = ""
    more: Any = None


@dataclass
class _Held:
    """What this process keeps for the work it is given: one thing at a time, made once."""

    token: str | None = None
    thing: Any = None
    lock: threading.RLock = field(default_factory=threading.RLock)


_HELD = _Held()


def packages() -> dict[str, str]:
    """Return codi-engine and every package that contributes plugins, with their versions and digests of their sources."""
    from codi_engine import __version__
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.running.origins import source_of

    others = {r.package: (r.version, r.cls.__module__) for r in plugin_manager().registered if r.package != _ENGINE}
    found = {**others, _ENGINE: (__version__, "codi_engine")}
    return {name: f"{version} (sha256 {source_of(module)[:12]})" for name, (version, module) in found.items()}


def libraries() -> dict[str, str]:
    """Return Python and the packages of :data:`LIBRARIES` that are installed, with their versions."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def enter(shared: Mapping[str, Any], token: str, make: str, *given: Any) -> Entered | Failed:
    """Compare a worker with what the work needs, and make what it will be done with; called by a worker's task.

    Parameters
    ----------
    shared: the fields of :class:`Common`
    token: names the work; what this process kept for another one is given up
    make: the name of what is called with ``given``: returns what is kept, whose ``entered()`` is told to the process that gives the work
    """
    try:
        common = Common(**shared)
        check(common)
        thing = hold(token, lambda: named(make)(*given))
        return Entered(socket.gethostname(), os.getpid(), _other(common.libraries, libraries()), thing.entered())
    except Exception as error:  # whatever it is, the process that gives the work tells the user
        return Failed.of(error)


def check(common: Common) -> None:
    """Refuse work for which something is not here, or another version.

    Raises
    ------
    UserError: what differs
    """
    host = socket.gethostname()
    mine = packages()
    for name, want in sorted(common.packages.items()):
        have = mine.get(name)
        if have != want:
            raise UserError(f"has {name} {have}, not {want}; install it there" if have else f"has no {name} (this process has {want}); install it there")
    if not os.path.isdir(common.folder):
        raise UserError(f"{host} does not see {common.folder}, from which this command's paths count; workers need the same file system")
    os.chdir(common.folder)
    for path, chain in common.runs.items():
        if not os.path.isfile(os.path.join(path, LEDGER)):
            raise UserError(f"{host} does not see the run {path}; workers need the same file system")
        if chain is not None and read_ledger(Path(path) / LEDGER).chain != chain:
            raise UserError(f"{host} sees another run in {path} than this process; workers need the same file system")


def _other(want: Mapping[str, str], have: Mapping[str, str]) -> str:
    """Name the libraries of which a worker has other versions."""
    return ", ".join(f"{name} {have.get(name, 'absent')} (here {version})" for name, version in want.items() if have.get(name) != version)


# ------------------------------------------------------------------------------ what a worker process keeps


def hold(token: str, make: Callable[[], Any]) -> Any:
    """Return what this process keeps under a token, made now unless it is there; anything else is given up first."""
    with _HELD.lock:
        if _HELD.token != token:
            _release()
            _HELD.thing, _HELD.token = make(), token
        return _HELD.thing


def held(token: str) -> Any:
    """Return what this process keeps under a token.

    Raises
    ------
    LookupError: nothing, or something else: another command has taken the worker over
    """
    with _HELD.lock:
        if _HELD.token != token:
            raise LookupError("this worker was taken over by another command")
        return _HELD.thing


def release(token: str) -> None:
    """Give up what is kept under a token; its memory is free again."""
    with _HELD.lock:
        if _HELD.token == token:
            _release()


def _release() -> None:
    thing, _HELD.thing, _HELD.token = _HELD.thing, None, None
    if thing is not None:
        thing.close()
