"""``codi-engine view``: the report on 127.0.0.1, with live progress beside it.

Five fixed addresses are served and nothing else: no part of a URL ever becomes a path of the file system. Requests of other hosts'
names (DNS rebinding) and methods other than GET and HEAD are refused.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from codi_engine.core.errors import CodiEngineError, UserError
from codi_engine.core.text import neutral
from codi_engine.reporting.watch import Watch
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import LEDGER

Render = Callable[[Path], str]
HOST = "127.0.0.1"
#: longest request target that is looked at
_LONGEST = 256
#: seconds that a client may take for its request
_PATIENCE = 20
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_LIVE_POLICY = f"{_NOTHING}; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src data:"
#: the report's own policy stands in the page, by hashes; this one only adds who may frame it, and that it may send nothing
_REPORT_POLICY = "connect-src 'none'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
_HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
_HTML, _JSON, _TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"


def render_report(path: Path) -> str:
    """Return the page of a run."""
    from codi_engine.reporting.page import open_one, render_page

    return render_page(open_one(path))


class Viewer:
    """A server of one run's report; ``with Viewer(run) as viewer: viewer.serve()``.

    Parameters
    ----------
    port: 0 takes any free one
    render: makes the page of a run's directory

    Raises
    ------
    UserError: neither the run nor its parent directory exists, it holds several runs, or the port is in use
    """

    def __init__(self, run: str | Path, port: int = 0, render: Render = render_report) -> None:
        self.watch = Watch(_checked(Path(run)))
        self._render, self._making = render, threading.Lock()
        self._page: tuple[str, str] | None = None
        handler = type("Handler", (_Handler,), {"viewer": self})
        try:
            self._server = _Server((HOST, port), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise UserError(f"view: port {port} cannot be opened: {error.strerror}") from None
            what = "is in use" if error.errno == errno.EADDRINUSE else "is not for us"
            raise UserError(f"view: port {port} {what}; choose another with --port, or --port 0 for any free one") from None

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/"

    def serve(self) -> None:
        """Serve until :meth:`stop` from another thread, or an exception such as Ctrl-C's."""
        self._server.serve_forever(poll_interval=0.2)

    def stop(self) -> None:
        self._server.shutdown()

    @cached_property
    def names(self) -> frozenset[str]:
        """What a request's Host may be."""
        return frozenset(f"{name}{port}" for name in (HOST, "localhost") for port in (f":{self.port}", *([""] if self.port == 80 else [])))

    # ----------------------------------------------------------------------------------------------- answers

    def answer(self, target: str) -> tuple[HTTPStatus, str, bytes, str]:
        """Return status, type, body and policy for a request's target; what follows ``?`` is not looked at."""
        address = target.partition("?")[0]
        if address == "/":
            return HTTPStatus.OK, _HTML, self._asset("live.html"), _LIVE_POLICY
        if address == "/live.js":
            return HTTPStatus.OK, "text/javascript; charset=utf-8", self._asset("live.js"), _LIVE_POLICY
        if address == "/live.css":
            return HTTPStatus.OK, "text/css; charset=utf-8", self._asset("live.css"), _LIVE_POLICY
        if address == "/live.json":
            return HTTPStatus.OK, _JSON, json.dumps(self.watch.read()).encode(), _LIVE_POLICY
        if address == "/report":
            return self._report()
        return HTTPStatus.NOT_FOUND, _TEXT, b"not found\n", _LIVE_POLICY

    def _asset(self, name: str) -> bytes:
        """Return a file of the package; the names are those above."""
        return files("codi_engine.reporting").joinpath("live", name).read_bytes()

    def _report(self) -> tuple[HTTPStatus, str, bytes, str]:
        """Return the report, made anew only when the run has changed; one thread makes it, others wait for it."""
        with self._making:
            version = self.watch.version()
            if self._page is None or self._page[0] != version:
                try:
                    self._page = (version, self._render(self.watch.path))
                except (CodiEngineError, StoreError) as error:  # half-written or damaged: said, and tried again at the next request
                    return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"the report cannot be made now: {error}\n".encode(), _REPORT_POLICY
            return HTTPStatus.OK, _HTML, self._page[1].encode("utf-8", "backslashreplace"), _REPORT_POLICY


def _checked(path: Path) -> Path:
    """Refuse what will never be a run here."""
    from codi_engine.core.planning.checkpoints import runs_below

    if (path / LEDGER).exists():
        return path
    found = [p.name for p in runs_below(path)]
    if found:
        raise UserError(f"{path}: holds the runs {', '.join(found[:6])}{', …' if len(found) > 6 else ''}; view one of them: {path / found[0]}")
    if path.is_file():
        raise UserError(f"{path}: is a file, not a run's directory")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: there is no such run, nor the directory {path.parent} that it could appear in; `codi-engine ls` lists runs")
    return path


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: a second server on the same port must be refused, not share it
    allow_reuse_port = False
    allow_reuse_address = sys.platform != "win32"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; anything else was answered with 500 and is told in one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError, socket.timeout)):
            sys.stderr.write(f"view: {type(error).__name__}: {neutral(error)}\n")


class _Handler(BaseHTTPRequestHandler):
    viewer: ClassVar[Viewer]
    server_version, sys_version = "codi-engine", ""
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        for status, reason in self._refusals():
            self._send(status, _TEXT, f"{reason}\n".encode(), _LIVE_POLICY, body, close=True)
            return
        try:
            status, kind, content, policy = self.viewer.answer(self.path)
        except Exception as error:  # a defect of the page must not end the server, which also shows the progress
            sys.stderr.write(f"view: {type(error).__name__}: {neutral(error)}\n")
            status, kind, content, policy = HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"the page could not be made; the terminal says why\n", _LIVE_POLICY
        self._send(status, kind, content, policy, body)

    def _refusals(self) -> Iterator[tuple[HTTPStatus, str]]:
        if self.headers.get_all("Host", []) == [] or any(h not in self.viewer.names for h in self.headers.get_all("Host", [])):
            yield HTTPStatus.MISDIRECTED_REQUEST, f"only {self.viewer.url} is served"
        if len(self.path) > _LONGEST:
            yield HTTPStatus.REQUEST_URI_TOO_LONG, "too long"
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            yield HTTPStatus.BAD_REQUEST, "a request has no body here"

    def _send(self, status: HTTPStatus, kind: str, content: bytes, policy: str, body: bool, close: bool = False) -> None:
        self.send_response(status)
        more = {"Connection": "close"} if close else {}
        for name, value in {**_HEADERS, "Content-Security-Policy": policy, "Content-Type": kind, "Content-Length": str(len(content)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is not HTTP, too long, or another method; nothing of the request is repeated."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self.request_version = "HTTP/1.1"  # whatever was asked: an answer has a status and headers
        content = f"{status.phrase}\n".encode()
        self.send_response(status)
        allow = {"Allow": "GET, HEAD"} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        policy = {"Content-Security-Policy": _LIVE_POLICY, "Content-Type": _TEXT, "Content-Length": str(len(content)), "Connection": "close"}
        for name, value in {**_HEADERS, **policy, **allow}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a poll each second is not worth a line."""
