"""What goes wrong in another process, as it travels to the one that tells the user."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from codi_engine.core.errors import GateError, PluginError, UserError, of_the_machine
from codi_engine.store.errors import StoreError

#: errors that keep their kind on the way to the user
KINDS: dict[str, type[Exception]] = {e.__name__: e for e in (UserError, GateError, PluginError, StoreError)}


class WorkerFailed(RuntimeError):
    """A worker raised something unexpected; its traceback is the cause."""


class Leaves(Exception):
    """A worker was asked to end: it does not begin a task."""


class Remote(Exception):
    """A traceback from another process."""


@dataclass(frozen=True)
class Failed:
    """An exception: its kind where it is one of :data:`KINDS`, what it says, and where it was raised."""

    kind: str
    text: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        trace = "".join(traceback.format_exception(error))
        error = of_the_machine(error) or error
        kind = next((name for name, known in KINDS.items() if isinstance(error, known)), "")
        text = str(error) if kind else f"{type(error).__name__}: {error}"
        return cls(kind, text, trace)


def raised(who: str, failed: Failed) -> Exception:
    """Return what a worker raised, as this process raises it."""
    error = KINDS[failed.kind](failed.text) if failed.kind else WorkerFailed(f"{who}: {failed.text}")
    error.__cause__ = Remote(f"\n{failed.trace}")
    return error
