"""What can go wrong, and who has to mend it.

CodiEngineError
├── UserError          bad input: file, field and remedy in one or two lines (exit code 2)
│   └── DifferentRun   the output directory holds another experiment
├── GateError          an edit did not do what the plan says; nothing was swept
├── WorkerDied         the process of a device ended before its units were computed
├── Paused             a run stopped between two units, because the disk is nearly full (exit code 4)
└── PluginError        a plugin's method failed or returned what it must not: package, plugin and method are named (exit code 1)
    └── AnalysesFailed some analyses failed; the results of the others are written

``Stopped`` is no error: a KeyboardInterrupt that says which signal ended a run, and what of it is committed (exit code 130, 143, 129).

The store, which knows nothing of the core, has errors of its own: ``codi_engine.store.errors``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from codi_engine.core.text import short
from codi_engine.store.errors import meaning
from codi_engine.store.shown import named

#: characters of a line of a message; the command line shows fewer
LONGEST = 3_000


class CodiEngineError(Exception):
    """Base of every error that codi-engine raises on purpose."""


class UserError(CodiEngineError):
    """The input is wrong: the message names file, field and remedy in one or two lines; what it quotes of the input is cut."""

    def __init__(self, message: object = "") -> None:
        super().__init__(short(named(str(message)), LONGEST))


class DifferentRun(UserError):
    """The output directory already holds a run of a different experiment."""


class GateError(CodiEngineError):
    """An edit did not fire, fired elsewhere, or an identity was not exact."""


class WorkerDied(CodiEngineError):
    """A process that computed units on a device ended, and ended again; what is committed stays."""


class Paused(CodiEngineError):
    """A run stopped between two units and goes on with the same command, once the reason is gone."""


class Stopped(KeyboardInterrupt):
    """A signal (Ctrl-C, SIGTERM, SIGHUP) ended a run; what is committed stays.

    Attributes
    ----------
    number: of the signal
    kept: what is committed, in words
    again: False where nothing is kept that the same command could go on with
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.kept, self.again = number, "what is committed stays", True

    @property
    def code(self) -> int:
        """The exit code, as shells count: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped; {self.kept}{'; the same call goes on' if self.again else ''}"


class PluginError(CodiEngineError):
    """A plugin's own code failed, a built-in's or a third party's; what is committed stays."""


class AnalysesFailed(PluginError):
    """Some of several analyses failed. ``done``: what the others gave; ``failures``: the errors, one each."""

    def __init__(self, failures: Sequence[PluginError], done: Sequence[object] = ()) -> None:
        super().__init__("\n".join(str(f) for f in failures))
        self.failures, self.done = list(failures), list(done)


@contextmanager
def said_of(source: str) -> Iterator[None]:
    """Let the messages of errors that come out of it begin with the file that they are about."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(f"{source}:"):
            raise
        raise type(error)(f"{source}: {error}") from None


def of_the_machine(error: BaseException) -> UserError | None:
    """Return what an error says to the user that is a state of the machine and nobody's defect; None for all others.

    A full or read-only disk, a limit on files or their size, a failing disk, memory that is used up: wherever it was noticed.
    """
    if isinstance(error, OSError):
        where = Path(str(error.filename)) if error.filename else None
        known = meaning(error, where)
        if isinstance(error, PermissionError) and where is not None:
            known = (str(error.strerror), "give the command access to it, or choose another directory")
        return None if known is None else UserError(f"{'' if where is None else f'{where}: '}{known[0]}; what is committed stays: {known[1]}")
    if _without_memory(error):
        return UserError("memory is used up; what is committed stays: free some, or lower memory: or batch_size:, and repeat the command")
    return None


#: what Python, oneDNN and C++ say when they get no memory
_WITHOUT_MEMORY = ("can't start new thread", "could not create a primitive", "bad_alloc")


def _without_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in _WITHOUT_MEMORY)):
        return True
    if "torch" not in sys.modules:
        return False
    from codi_engine.core.rollout.memory import out_of_memory

    return out_of_memory(error)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``did you mean 'a' or 'b'?`` for a misspelt name, or the known names when few match."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"known: {shown}" if names else "none is known"
