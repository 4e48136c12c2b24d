"""One tracker in a thread of its own: whatever it does, the run neither waits for it nor stops."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from codi_engine.core.plugin import Tracker

#: units that may wait for a tracker; the newest takes the last one's place after that
MOST = 32
#: seconds the run waits for all its trackers at the end; after a pause or a failure
PATIENCE, SHORT = 30.0, 10.0


class Observer:
    """Hands a tracker what it is told, in order, in a daemon thread.

    Parameters
    ----------
    tracker: any; it may raise anything, sleep and hang
    called: how it is named to the user, with its package
    note: tells the user one line
    """

    def __init__(self, tracker: Tracker[Any], called: str, note: Callable[[str], None]) -> None:
        self.tracker, self.called, self._note = tracker, called, note
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._closing = False
        self._busy = ""
        self._named: set[tuple[str, str]] = set()
        tracker.note = note  # type: ignore[method-assign, assignment]

    def tell(self, method: str, *arguments: Any) -> None:
        """Call ``tracker.method(*arguments)`` when its turn comes; returns at once."""
        with self._changed:
            if self._closing:
                return
            if method == "committed" and sum(m == method for m, _ in self._waiting) >= MOST:
                self._drop_newest(method)
            self._waiting.append((method, arguments))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"codi-engine {self.called}", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _drop_newest(self, method: str) -> None:
        last = max(i for i, (m, _) in enumerate(self._waiting) if m == method)
        del self._waiting[last]

    def close(self) -> None:
        """Let the tracker end when it has done what waits; returns at once."""
        with self._changed:
            self._closing = True
            if self._thread is None:  # it was told nothing
                self._done.set()
            self._changed.notify()

    def wait(self, until: float) -> None:
        """Wait for the tracker's end, at most until ``time.monotonic()`` is ``until``; say what was left."""
        begun = time.monotonic()
        if self._done.wait(max(until - begun, 0.0)):
            return
        with self._changed:
            left = len(self._waiting)
            what = f"is still in {self._busy}()" if self._busy else "has not begun"
        later = f"; {self.tracker.later}" if self.tracker.later else ""
        more = f", {left} message{'s' * (left != 1)} left" if left else ""
        self._say(f"{self.called} {what}{more}, and is waited for no longer{later}")

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closing)
                    if not self._waiting:
                        break
                    self._busy, arguments = self._waiting.popleft()
                self._call(self._busy, arguments)
                with self._changed:
                    self._busy = ""
            self._busy = "close"
            self._call("close", ())
        finally:
            self._done.set()

    def _call(self, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            getattr(self.tracker, method)(*arguments)
        except BaseException as error:  # even sys.exit() of a third party's code ends nothing here
            self._failed(method, error)

    def _failed(self, method: str, error: BaseException) -> None:
        kind = type(error).__name__
        if (method, kind) not in self._named:
            self._named.add((method, kind))
            self._say(f"{self.called}: {method}() failed and is passed over: {kind}: {error}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(Exception):  # nobody may be there to be told (a closed terminal); the tracker is told on
            self._note(text)
