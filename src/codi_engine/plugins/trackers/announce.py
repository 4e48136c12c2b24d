"""Trackers that tell somebody: a web address or a program is given each event as JSON."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Event, Options, Tracker
from codi_engine.core.watching.eventlog import now

Moment = Literal["started", "analysed", "note", "warning", "disk", "paused", "failed", "resumed", "finished"]
#: bytes of an answer or of a complaint that are looked at
_SHOWN = 200


class AnnounceOptions(Options):
    """``events``: which of started, analysed, note, warning, disk, paused, failed, resumed, finished; ``timeout``: seconds each may take."""

    events: list[Moment] = Field(default=["disk", "paused", "failed", "finished"])
    timeout: float = Field(default=10.0, gt=0.0, le=600.0)


OptionsT = TypeVar("OptionsT", bound=AnnounceOptions)


class Announcer(Tracker[OptionsT]):
    """Sends a message for each event that is asked for: kind, text, time, run, experiment, data."""

    _run, _experiment, _cells, _planned = "", "", 0, 0

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        self._run, self._experiment = str(run), str(experiment.get("name", run.name))
        self._announce("started", "started")

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        self._cells, self._planned = int(aggregates.get("cells", 0)), int(aggregates.get("planned_cells", 0))

    def event(self, event: Event) -> None:
        self._announce(event.kind, event.text, event.data, event.time)

    def analysed(self, name: str, folder: Path) -> None:
        self._announce("analysed", f"analysis {name} is done", {"analysis": name, "folder": str(folder)})

    def finished(self, run: Path, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        self._announce("finished", "finished", {"figures": {k: str(v) for k, v in figures.items()}})

    def _announce(self, kind: str, text: str, data: Mapping[str, Any] | None = None, time: str = "") -> None:
        if kind not in self.options.events:
            return
        named = f"{self._experiment}: {text}" if self._experiment else text
        facts = {"cells": self._cells, "planned_cells": self._planned, **(data or {})}
        message = {"kind": kind, "text": named, "time": time or now(), "run": self._run, "experiment": self._experiment, "data": facts}
        self.send(json.dumps(message, default=str).encode())

    def send(self, message: bytes) -> None:
        """Deliver one message, or raise what went wrong."""
        raise NotImplementedError


# --------------------------------------------------------------------------------------------------- webhook


class WebhookOptions(AnnounceOptions):
    """``url``: where to, http or https; ``url_from``: the environment variable that holds it, where the address is a secret.

    ``events``: which of started, analysed, note, warning, disk, paused, failed, resumed, finished. ``timeout``: seconds.
    ``headers``: header → name of the environment variable that holds its value.
    """

    url: str | None = None
    url_from: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_address(self) -> WebhookOptions:
        if (self.url is None) == (self.url_from is None):
            raise ValueError("write url, or url_from with the name of an environment variable")
        return self


class Webhook(Announcer[WebhookOptions]):
    """Post each event as JSON to a web address: ``{"kind", "text", "time", "run", "experiment", "data"}``.

    Chat services that take ``{"text": …}`` show the text. Secrets stay in environment variables: name them in ``headers`` and
    ``url_from``.
    """

    name = "webhook"
    Options = WebhookOptions

    def check(self) -> None:
        for option, name in (("url_from", self.options.url_from), *((f"headers.{k}", v) for k, v in self.options.headers.items())):
            if name is not None and not os.environ.get(name):
                raise UserError(f"{option}: the environment variable {name} is not set")
        for header, name in self.options.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", header) or not _one_line(os.environ[name]):
                raise UserError(f"headers.{header}: is no HTTP header with a value of one line")
        address = urlsplit(self._address())
        if address.scheme not in ("http", "https") or not address.hostname or " " in self._address() or not _one_line(self._address()):
            raise UserError("url: write an http or https address, such as https://example.org/hook")

    def _address(self) -> str:
        return self.options.url or os.environ.get(self.options.url_from or "", "")

    def send(self, message: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "codi-engine", **{k: os.environ[v] for k, v in self.options.headers.items()}}
        request = urllib.request.Request(self._address(), data=message, headers=headers, method="POST")
        try:
            with urllib.request.build_opener(_Here).open(request, timeout=self.options.timeout) as answer:
                answer.read(_SHOWN)
        except urllib.error.HTTPError as error:
            with error:
                raise ConnectionError(f"{urlsplit(self._address()).hostname} answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:  # its text may hold the address, which may be a secret
            reason = getattr(error, "reason", error)
            raise ConnectionError(f"{urlsplit(self._address()).hostname} cannot be reached: {reason}") from None


class _Here(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the message would be lost on the way, and its headers, which may be secrets, be sent to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _one_line(text: str) -> bool:
    """False where a header or an address could not be sent, and would be repeated in the error."""
    return text.isascii() and text.isprintable()


# --------------------------------------------------------------------------------------------------- command


class CommandOptions(AnnounceOptions):
    """``argv``: the program and its arguments, no shell; ``events``: which of started, analysed, note, warning, disk, paused, failed, resumed,
    finished; ``timeout``: seconds until it is ended."""

    argv: list[str] = Field(min_length=1)


class Command(Announcer[CommandOptions]):
    """Start a program for each event and give it the event as JSON on its standard input.

    The program's output is not shown; an exit code other than 0 is reported with the last line of its standard error.
    """

    name = "command"
    Options = CommandOptions

    def check(self) -> None:
        if shutil.which(self.options.argv[0]) is None:
            raise UserError(f"argv: no such program: '{self.options.argv[0]}'")

    def send(self, message: bytes) -> None:
        made = subprocess.Popen(
            self.options.argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )  # a session of its own: Ctrl-C in the terminal is not meant for it
        with made:
            try:
                _, complaint = made.communicate(message, timeout=self.options.timeout)
            except subprocess.TimeoutExpired:
                _kill(made)
                raise TimeoutError(f"{self.options.argv[0]} was ended after {self.options.timeout:g} s") from None
        if made.returncode:
            last = complaint.decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
            raise RuntimeError(f"{self.options.argv[0]} ended with {made.returncode}: {last[0][:_SHOWN]}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
