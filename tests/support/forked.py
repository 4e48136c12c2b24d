"""Commands in a forked child of this process: libraries are imported already, so that a run of a second takes a second."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path


class Forked:
    """A child that runs a command of ``codi-engine``; its output goes to ``said``.

    Parameters
    ----------
    arguments: of the command
    said: a file
    prepare: called in the child before the command
    """

    def __init__(self, arguments: list[str], said: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self.said, self.begun = said, time.monotonic()
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which the child has none of and needs none of
            self.pid = os.fork()
        if self.pid == 0:
            self._child(arguments, prepare)
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)

    def _child(self, arguments: list[str], prepare: Callable[[], None]) -> None:
        code = 99
        try:
            descriptor = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = open(1, "w", encoding="utf-8", closefd=False), open(2, "w", 1, "utf-8", closefd=False)  # noqa: SIM115 - until the child ends
            prepare()
            sys.argv = ["codi-engine", *arguments]
            from codi_engine.__main__ import entry

            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            entry()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        except BaseException:  # whatever it is, the parent looks for it in what was said
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code as shells count; a child that does not end is killed."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"the command did not end in {seconds:g} s: {self.said.read_text(encoding='utf-8')[-400:]}")
            time.sleep(0.005)
