"""Signals that end a run: Ctrl-C once finishes the unit that is computed, twice stops now; SIGTERM and SIGHUP are as Ctrl-C once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from codi_engine.core.errors import Stopped

#: signals that end a run, each with Python's own handler, over which ours are installed; a handler of somebody else's stays
DEFAULTS = {
    number: default
    for name, default in (("SIGINT", signal.default_int_handler), ("SIGTERM", signal.SIG_DFL), ("SIGHUP", signal.SIG_DFL))
    if (number := getattr(signal, name, None)) is not None
}
#: seconds within which a second Ctrl-C is the first one again: a launcher passes on what the terminal sends to it and to us
ECHO = 0.25


class Stopping:
    """What signals do to a run; they arrive between :meth:`_listen` and :meth:`_leave`, in the main thread.

    Parameters
    ----------
    say: tells the user one line
    at_once: stop at the first signal, whatever is being done (nothing is kept)
    """

    def __init__(self, say: Callable[[str], None], at_once: bool = False) -> None:
        self._say, self._at_once = say, at_once
        self._doing: Callable[[], str] | None = None
        self._asked: int | None = None
        self._last = -ECHO
        self._former: list[int] = []
        self._leaving, self._late = False, 0

    # ---------------------------------------------------------------------------------------- the run

    @property
    def asked(self) -> bool:
        """True when the run is to stop after the unit that is computed."""
        return self._asked is not None

    @contextmanager
    def units(self, doing: Callable[[], str]) -> Iterator[None]:
        """While units are computed, finish the one that is being computed; ``doing`` names it (``unit 7 of 40``)."""
        self._doing = doing
        try:
            yield
        finally:
            self._doing = None
        self.check()

    def check(self) -> None:
        """Stop here if a signal asked for it; call it when a unit is committed.

        Raises
        ------
        Stopped: a signal came
        """
        if self._asked is not None:
            raise Stopped(self._asked)

    # ------------------------------------------------------------------------------------- the signals

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._leaving:
            self._late = number
            return
        now = time.monotonic()
        again = number == signal.SIGINT and self._asked is not None
        if now - self._last < ECHO and (again or self._doing is None):
            return
        self._last = now
        if self._at_once or self._doing is None or again:
            self._asked = number  # Python drops what is raised in the middle of collecting garbage: the next check raises it again
            raise Stopped(number)
        if self._asked is None:
            self._asked = number
            self._tell(f"finishing {self._doing()}; Ctrl-C {'again ' if number == signal.SIGINT else ''}stops now")

    def _tell(self, text: str) -> None:
        """Say it from another thread: this one may be in the middle of writing to the same stream."""

        def say() -> None:
            with contextlib.suppress(Exception):  # the terminal may be gone; the unit is finished all the same
                self._say(text)

        with contextlib.suppress(RuntimeError):  # no thread can be started
            threading.Thread(target=say, name="codi-engine stopping", daemon=True).start()

    def _listen(self) -> None:
        for number, default in DEFAULTS.items():
            if signal.getsignal(number) is default:
                signal.signal(number, self._arrived)
                self._former.append(number)

    def _leave(self) -> None:
        for number in reversed(self._former):  # Ctrl-C last: from then on it can end this loop
            signal.signal(number, DEFAULTS[number])
        if self._late:
            raise Stopped(self._late)


_LISTENING: list[Stopping] = []


@contextmanager
def listening(say: Callable[[str], None], at_once: bool = False) -> Iterator[Stopping]:
    """Take signals for a run; within another such context of the main thread, yield that one's.

    In another thread signals never arrive, and nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stopping(say)
        return
    if _LISTENING:
        yield _LISTENING[0]
        return
    made = Stopping(say, at_once)
    try:
        _LISTENING.append(made)
        made._listen()
        yield made
    finally:
        made._leaving = True  # a signal waits until all handlers are what they were
        try:
            made._leave()
        finally:
            _LISTENING.clear()  # whatever came meanwhile: the next run must not take this one for one that goes on
