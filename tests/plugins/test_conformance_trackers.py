"""The built-in trackers through the suite; nobody is called."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from codi_engine.core.plugins import plugin_manager
from codi_engine.core.watching import lifecycle
from codi_engine.plugins.trackers.announce import Command, Webhook
from codi_engine.plugins.trackers.tensorboard_files import FOLDER, TensorBoard
from codi_engine.plugins.trackers.weights_and_biases import Wandb
from codi_engine.testing import TrackerSuite

EVENTS = ["started", "analysed", "note", "warning", "disk", "paused", "failed", "resumed", "finished"]


@pytest.fixture(autouse=True)
def _nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "PATIENCE", 60.0)  # a machine that others use too
    for name in [n for n in os.environ if n.startswith("WANDB_") and n != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


class TestWandb(TrackerSuite):
    plugin = Wandb
    options = ({"mode": "offline"},)


class TestTensorBoard(TrackerSuite):
    plugin = TensorBoard

    def steps(self, run: Path) -> list[int]:
        reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(run / FOLDER)).Reload()
        return [point.step for point in events.Scalars("mean/patch/kl")]


class Answering(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    kept: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.kept.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("CONFORMANCE_HOOK", f"http://127.0.0.1:{server.server_port}/hook")
    Answering.kept.clear()
    try:
        yield "CONFORMANCE_HOOK"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.usefixtures("address")
class TestWebhook(TrackerSuite):
    plugin = Webhook
    options = ({"url_from": "CONFORMANCE_HOOK", "events": EVENTS},)

    def test_a_life_from_start_to_finish(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        super().test_a_life_from_start_to_finish(setting, tmp_path)
        assert [m["kind"] for m in Answering.kept] == ["started", "analysed", "finished"]


class TestCommand(TrackerSuite):
    plugin = Command
    options = ({"argv": ["sh", "-c", "cat >> told.jsonl; echo >> told.jsonl"], "events": EVENTS},)

    @pytest.fixture(autouse=True)
    def _posix(self) -> None:
        if sys.platform == "win32":
            pytest.skip("the command is a POSIX shell's")

    def test_a_life_from_start_to_finish(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        super().test_a_life_from_start_to_finish(setting, tmp_path)
        told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [m["kind"] for m in told] == ["started", "analysed", "finished"]


def test_every_builtin_tracker_has_a_suite() -> None:
    known = {r.cls for r in plugin_manager(load=False).registered if r.kind == "tracker"}
    assert known == {TestWandb.plugin, TestTensorBoard.plugin, TestWebhook.plugin, TestCommand.plugin}
