"""Which clauses of a conformance suite a plugin fails: every clause is tried, those meant for it and the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


def suite(base: type[Any], cls: type[Any] | None, **attributes: Any) -> Any:
    """Return an instance of a suite for a class."""
    name = "Subject" if cls is None else cls.__name__
    return type(f"Of{name}", (base,), {**({} if cls is None else {"plugin": cls}), **attributes})()


def failures(made: Any, folder: Path, fixtures: Mapping[str, Callable[[Path], Any]] | None = None) -> dict[str, str]:
    """Return clause → what it said, of the clauses that fail.

    Parameters
    ----------
    folder: each clause works in an empty directory below it
    fixtures: name → maker, for what the clauses ask beyond ``setting`` (the first of the suite's options) and ``tmp_path``
    """
    failed = {}
    for name in dir(type(made)):
        if not name.startswith("test_"):
            continue
        place = folder / name
        place.mkdir(parents=True)
        known = {"setting": lambda _: dict(made.options[0]), "tmp_path": lambda p: p, **(fixtures or {})}
        clause = getattr(made, name)
        try:
            clause(**{asked: known[asked](place) for asked in inspect.signature(clause).parameters})
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception) as error:
            failed[name.removeprefix("test_")] = f"{type(error).__name__}: {error}"
    return failed
