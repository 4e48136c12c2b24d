"""``view``: five addresses, this machine only, whatever is asked; and what it says of a run that another process writes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.reporting.serve import Viewer, render_report
from codi_engine.reporting.watch import Watch

PAGE = "<!doctype html><title>stand-in</title><h1>{}</h1>"


def said(path: Path) -> str:
    return PAGE.format(path.name)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    path = write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), tmp_path / "run")
    with serving(Viewer(path, 0, said)) as made:
        yield made


class serving:
    """A viewer that serves in a thread."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer, self.thread = viewer, threading.Thread(target=viewer.serve, daemon=True)

    def __enter__(self) -> Viewer:
        self.thread.start()
        return self.viewer

    def __exit__(self, *_: object) -> None:
        self.viewer.stop()
        self.thread.join(5)
        self.viewer.__exit__()


def ask(viewer: Viewer, request: str | bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes and return status, headers (lower case) and body; the status is 0 where nothing came back."""
    raw = request if isinstance(request, bytes) else request.replace("HOST", f"127.0.0.1:{viewer.port}").encode()
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=10) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # refused while it was still being sent
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split(" ")[1]) if lines[0] else 0, headers, body


def get(viewer: Viewer, target: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return ask(viewer, f"{method} {target} HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")


def test_what_is_served(viewer: Viewer) -> None:
    status, headers, body = get(viewer, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b'src="/live.js"' in body
    policy = headers["content-security-policy"]
    assert {"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert "unsafe" not in policy
    assert b"style=" not in body
    assert b"onclick" not in body
    status, headers, body = get(viewer, "/report?at=1")
    assert (status, body.decode()) == (200, PAGE.format("run"))
    assert "connect-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    live = json.loads(get(viewer, "/live.json")[2])
    assert (live["state"], live["cells"], live["share"]) == ("finished", 12, 1.0)
    assert [s["cells"] for s in live["stages"]] == [12]
    assert get(viewer, "/live.css")[0] == get(viewer, "/live.js")[0] == 200


def test_head_has_no_body(viewer: Viewer) -> None:
    status, headers, body = get(viewer, "/report", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) == len(PAGE.format("run"))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(viewer: Viewer, method: str) -> None:
    status, headers, _ = get(viewer, "/report", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:PORT", "127.0.0.1", "127.0.0.1:1", "localhost:PORT.example.org", "[::1]:PORT", "", "0.0.0.0:PORT"]
)
def test_other_hosts_are_refused(viewer: Viewer, host: str) -> None:
    status, _, body = ask(viewer, f"GET /live.json HTTP/1.1\r\nHost: {host.replace('PORT', str(viewer.port))}\r\n\r\n")
    assert status == 421
    assert b"cells" not in body


def test_requests_without_or_with_two_hosts_are_refused(viewer: Viewer) -> None:
    assert ask(viewer, b"GET / HTTP/1.1\r\n\r\n")[0] == 421
    assert ask(viewer, "GET / HTTP/1.1\r\nHost: HOST\r\nHost: example.org\r\n\r\n")[0] == 421
    assert ask(viewer, f"GET / HTTP/1.1\r\nHost: localhost:{viewer.port}\r\nConnection: close\r\n\r\n")[0] == 200


@pytest.mark.parametrize(
    "target",
    ["/../ledger", "/ledger", "/..", "/%2e%2e/ledger", "//etc/passwd", "/report/../ledger", "/report/", "/live.html", "/results/", "\\ledger", "/live.js%00"],
)
def test_no_path_leads_to_a_file(viewer: Viewer, target: str) -> None:
    status, _, body = get(viewer, target)
    assert (status, body) == (404, b"not found\n")


def test_huge_and_broken_requests(viewer: Viewer) -> None:
    assert get(viewer, "/" + "x" * 1000)[0] == 414
    assert get(viewer, "/" + "x" * 200_000)[0] in (0, 414)  # more than a request's line: the connection may be closed while it is sent
    assert ask(viewer, "GET /report HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello")[0] == 400
    assert ask(viewer, b"\x16\x03\x01\x02\x00\x01\r\n\r\n")[0] in (0, 400)
    status, _, body = ask(viewer, b"GET /<script> HTTP/9.9\r\n\r\n")
    assert b"<script>" not in body
    assert status in (0, 400, 505)
    assert get(viewer, "/live.json")[0] == 200


def test_a_page_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), tmp_path / "run")
    failures: list[Exception] = [UserError("half of it is there"), ValueError("a defect")]

    def fail(_: Path) -> str:
        raise failures.pop(0)

    with serving(Viewer(path, 0, fail)) as viewer:
        status, _, body = get(viewer, "/report")
        assert (status, b"half of it is there" in body) == (503, True)
        status, _, body = get(viewer, "/report")
        assert (status, b"a defect" in body) == (500, False)
        assert get(viewer, "/live.json")[0] == 200
    assert "ValueError: a defect" in capsys.readouterr().err


def test_the_page_is_made_anew_only_when_the_run_changes(tmp_path: Path) -> None:
    path = write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), tmp_path / "run")
    made: list[Path] = []

    def counted(p: Path) -> str:
        made.append(p)
        return str(len(made))

    with serving(Viewer(path, 0, counted)) as viewer:
        assert [get(viewer, "/report")[2] for _ in range(3)] == [b"1"] * 3
        (path / "notes.md").write_text("## x\n", encoding="utf-8")
        assert get(viewer, "/report")[2] == b"2"


def test_the_real_page(planted: Run) -> None:
    text = render_report(planted.path)
    assert 'id="features"' in text
    assert "Content-Security-Policy" in text


def test_refusals_before_it_serves(tmp_path: Path, viewer: Viewer) -> None:
    with pytest.raises(UserError, match=r"port \d+ is in use; choose another with --port"):
        Viewer(viewer.watch.path, viewer.port, said)
    with pytest.raises(UserError, match="nor the directory"):
        Viewer(tmp_path / "no" / "run", 0, said)
    family = tmp_path / "family"
    shutil.copytree(viewer.watch.path, family / "one")
    with pytest.raises(UserError, match="holds the runs one; view one of them"):
        Viewer(family, 0, said)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        Viewer(tmp_path / "file", 0, said)


def test_waiting_and_events(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "later")
    assert watch.read()["state"] == "waiting"
    path = write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), tmp_path / "later")
    before = watch.version()
    events = [{"time": "t", "event": "unit"}, {"time": "t", "event": "warning", "message": "disk \u202e 85 %"}, "no object"]
    (path / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"torn', encoding="utf-8")
    found = watch.read()
    assert (found["state"], found["events"]) == ("finished", ["t warning: disk ⟨U+202E⟩ 85 %"])
    assert watch.version() == before
    ledger = path / "ledger"
    ledger.write_bytes(b"x" + ledger.read_bytes())
    assert (watch.read()["state"], "damaged" in watch.read()["problem"]) == ("damaged", True)


def test_the_command_prints_its_address_and_ends_with_control_c(tmp_path: Path) -> None:
    path = write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "codi_engine", "view", str(path), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        port = int(url.removeprefix("http://127.0.0.1:").removesuffix("/"))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(f"HEAD / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert b" 200 " in connection.recv(100)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert err.endswith("ended\n")
