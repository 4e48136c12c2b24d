"""What computes a run: versions of the libraries, the code of the engine and of its plugins, and the commit it was started in."""

from __future__ import annotations

import hashlib
import inspect
import platform
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError

if TYPE_CHECKING:
    from codi_engine.core.planning.preparing import Prepared
    from codi_engine.store.writer import RunWriter

#: where a run's provenance keeps what :func:`code_of` returns
CODE = "code"
_SHOWN = 12


def versions() -> dict[str, str]:
    """Return library → version."""
    import numpy
    import torch
    import transformers
    import zarr

    from codi_engine import __version__

    known = {"codi-engine": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**known, "transformers": transformers.__version__, "numpy": numpy.__version__, "zarr": zarr.__version__}


def code_of(prepared: Prepared) -> dict[str, dict[str, str]]:
    """Return package → version and digest of its source: the engine, and the packages whose plugins the units are computed with."""
    from codi_engine import __version__
    from codi_engine.core.calling import BUILTIN

    found = {"codi-engine": {"version": __version__, "sha256": source_of("codi_engine")}}
    plugins, experiment = prepared.plugins, prepared.experiment
    used: set[type[Any]] = {type(prepared.model), *(type(metric) for metric in prepared.metrics), *(c.plugin for c in prepared.plan.conditions)}
    used.add(plugins.get("dataset", experiment.data.plugin, "data"))
    for one in plugins.registered:
        if one.package != BUILTIN and (one.cls in used or one.kind == "sae_format"):
            found[one.package] = {"version": one.version, "sha256": source_of(one.cls.__module__)}
    return found


@cache
def source_of(module: str) -> str:
    """Return the sha256 of the Python files of the package that a module is of, or of the module's own file."""
    top = sys.modules.get(module.partition(".")[0])
    file = Path(inspect.getfile(top)) if top is not None and getattr(top, "__file__", None) else Path(inspect.getfile(sys.modules[module]))
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(file.parent).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def other_code(then: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> str:
    """Say by name and digest which package that both have is another one; empty where all are the same."""
    found = [f"{name} {_named(then[name])} there, {_named(now[name])} here" for name in then if name in now and then[name] != now[name]]
    return "; ".join(found)


def _named(about: Mapping[str, str]) -> str:
    return f"{about.get('version')} (sha256 {str(about.get('sha256'))[:_SHOWN]})"


def compare_code(writer: RunWriter, now: Mapping[str, Mapping[str, str]], path: Path, warn: Callable[[str], None], others: str = "") -> None:
    """Say that a run was begun with other code; refuse it where ``others`` compute units of it at the same time.

    Raises
    ------
    UserError: the others have other code
    """
    then = writer.provenance.get(CODE)
    if not isinstance(then, dict) or not writer.plans or not (said := other_code(then, now)):
        return
    if others:
        raise UserError(f"{path}: {others} computes it with other code: {said}.\nInstall the same version everywhere, or wait until the others have ended.")
    warn(f"{path}: was begun with other code: {said}")


def git_commit() -> str | None:
    """Return the commit of the directory the run was started in, if it is one."""
    import subprocess

    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", errors="replace", timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
