"""What can go wrong, and who has to mend it.

CodiEngineError
├── UserError          bad input: file, field and remedy in one or two lines (exit code 2)
│   └── DifferentRun   the output directory holds another experiment
├── GateError          an edit did not do what the plan says; nothing was swept
└── WorkerDied         the process of a device ended before its units were computed

The store, which knows nothing of the core, has errors of its own: ``codi_engine.store.errors``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class CodiEngineError(Exception):
    """Base of every error that codi-engine raises on purpose."""


class UserError(CodiEngineError):
    """The input is wrong: the message names file, field and remedy in one or two lines."""


class DifferentRun(UserError):
    """The output directory already holds a run of a different experiment."""


class GateError(CodiEngineError):
    """An edit did not fire, fired elsewhere, or an identity was not exact."""


class WorkerDied(CodiEngineError):
    """A process that computed units on a device ended, and ended again; what is committed stays."""


@contextmanager
def said_of(source: str) -> Iterator[None]:
    """Let the messages of errors that come out of it begin with the file that they are about."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(f"{source}:"):
            raise
        raise type(error)(f"{source}: {error}") from None


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``did you mean 'a' or 'b'?`` for a misspelt name, or the known names when few match."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"known: {shown}" if names else "none is known"
