"""What to say where a path holds no run, or no file: what lies near it."""

from __future__ import annotations

import difflib
from pathlib import Path

from codi_engine.core.errors import UserError
from codi_engine.store.connecting import is_url
from codi_engine.store.layout import LEDGER, LOCK
from codi_engine.store.remote import remote_at


def no_run(path: str | Path) -> UserError:
    """Return the error that says that ``path`` holds no run, and where one may be."""
    place = Path(path)
    if place.is_file():
        return UserError(f"{place}: is a file and holds no run; give a run directory, such as runs/demo")
    if (place / LOCK).exists():
        return UserError(f"{place}: holds no run yet: it is being prepared, nothing is committed")
    if place.is_dir() and any(place.glob(f"*/{LEDGER}")):
        return UserError(f"{place}: holds no run itself; `codi-engine ls {place}` lists those below it")
    return UserError(f"{place}: holds no run (there is no ledger); {similar(place) or '`codi-engine ls` lists the runs in runs/'}")


def refuse_remote(path: str | Path, what: str) -> None:
    """Refuse what runs at object stores cannot do.

    Raises
    ------
    UserError: it is the URL of one, or a directory that stands for one
    """
    if is_url(str(path)) or remote_at(Path(path)) is not None:
        raise UserError(f"{path}: an object store cannot hold {what}; give a directory")


def similar(path: Path) -> str:
    """Return ``did you mean 'runs/demo'?`` where something of nearly that name lies beside it, else nothing."""
    try:
        beside = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, [n for n in beside if n != path.name], n=1, cutoff=0.6)
    same = [n for n in beside if path.name and Path(n).stem == path.name and n != path.name]
    return f"did you mean '{path.parent / (same or close)[0]}'?" if same or close else ""
