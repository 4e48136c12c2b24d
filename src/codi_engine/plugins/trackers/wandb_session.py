"""One W&B session: which run it continues, how it is opened without a word on the terminal, and what happens where W&B is away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import netrc
import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from codi_engine.store.files import write_durably
from codi_engine.store.layout import LEDGER

#: W&B's own folder in the run's directory, and what is kept there between invocations
FOLDER, KEPT = "wandb", "codi-engine.json"
#: seconds until an unanswered start gives way to offline files, and until unsent data is left behind at the end
INIT, FINISH = 10.0, 20.0
#: seconds that W&B's address gets to answer at all
REACH = 3.0
#: what W&B would do beside logging: record output, git, packages, the machine; speak to the terminal
_QUIET = {
    "silent": True, "quiet": True, "show_errors": False, "show_info": False, "show_warnings": False, "console": "off",
    "disable_git": True, "disable_code": True, "save_code": False, "disable_job_creation": True,
    "x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False,
}  # fmt: skip


class _Service:
    """W&B's service process: ours where nobody had imported W&B before; ended when the last of our sessions is closed."""

    def __init__(self) -> None:
        self.ours = "wandb" not in sys.modules
        self.sessions = 0
        self.lock = threading.Lock()

    def enter(self, wandb: Any) -> None:
        with self.lock:
            if self.ours and not self.sessions:  # a session of the user's own keeps its settings
                wandb.setup(_settings(wandb, {}))
            self.sessions += 1

    def renew(self, wandb: Any) -> bool:
        """Start it anew where nobody else uses it."""
        with self.lock:
            if not self.ours or self.sessions > 1 or wandb.run is not None:
                return False
            with contextlib.suppress(Exception):
                wandb.teardown()
            wandb.setup(_settings(wandb, {}))
            return True

    def leave(self, wandb: Any) -> None:
        """End it: its files are whole then, and nothing is left to go wrong when Python exits."""
        with self.lock:
            self.sessions -= 1
            if self.ours and not self.sessions and wandb.run is None:
                with contextlib.suppress(Exception):  # it may be gone already
                    wandb.teardown()


_service: _Service | None = None
_first = threading.Lock()


def _the_service() -> _Service:
    global _service
    with _first:
        _service = _service or _Service()
    return _service


def identity(run: Path) -> str:
    """Return the id of the W&B run that belongs to a run: from the first line of its ledger and its place, and then kept with it."""
    kept = run / FOLDER / KEPT
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(kept.read_text(encoding="utf-8"))["id"])
    head = b""
    with contextlib.suppress(OSError), (run / LEDGER).open("rb") as ledger:
        head = ledger.readline()
    made = hashlib.sha256(head + str(run.absolute()).encode()).hexdigest()[:16]
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_durably(run / FOLDER, KEPT, (json.dumps({"id": made}) + "\n").encode())
    return made


def open_session(run: Path, about: Mapping[str, Any], config: Mapping[str, Any], mode: str, note: Callable[[str], None]) -> Any:
    """Start or continue the W&B run; offline where there is no key or no answer within :data:`INIT` seconds.

    Parameters
    ----------
    about: W&B settings that name the run
    config: what is shown as its configuration
    mode: online, offline, disabled
    """
    service = _the_service()
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported, and by its service
    import wandb

    service.enter(wandb)
    try:
        return _opened(wandb, run, about, config, mode, note)
    except BaseException:  # whatever it is, its service must not wait for this session
        service.leave(wandb)
        raise


def close_session(session: Any, exit_code: int) -> None:
    """End a session: what W&B has not taken within :data:`FINISH` seconds raises TimeoutError and stays on disk."""
    import wandb

    try:
        session.finish(exit_code=exit_code)
    finally:
        _the_service().leave(wandb)


def _opened(wandb: Any, run: Path, about: Mapping[str, Any], config: Mapping[str, Any], mode: str, note: Callable[[str], None]) -> Any:
    settings = {**about, "root_dir": str(run.absolute()), "resume": "allow", "reinit": "create_new", "init_timeout": INIT, "finish_timeout": FINISH}
    settings["finish_timeout_raises"] = True
    obstacle = _obstacle(wandb) if mode == "online" else ""
    if obstacle:
        note(f"tracker wandb: {obstacle}; it writes files and sends nothing")
        mode = "offline"
    try:
        return wandb.init(settings=_settings(wandb, {**settings, "mode": mode}), config=dict(config))
    except Exception as error:  # W&B raises its own, and others; none of them is a reason to log nothing
        if mode != "online":
            raise
        note(f"tracker wandb: {_first_line(error)}; it writes files and sends nothing")
    if not _the_service().renew(wandb):  # it holds the id of the failed start
        settings["run_id"] = f"{settings['run_id']}-offline"
    return wandb.init(settings=_settings(wandb, {**settings, "mode": "offline"}), config=dict(config))


def _settings(wandb: Any, values: Mapping[str, Any]) -> Any:
    """Return settings; those that this version of W&B does not have are left out."""
    known = wandb.Settings.model_fields
    return wandb.Settings(**{k: v for k, v in {**_QUIET, **values}.items() if k in known and v is not None})


def _obstacle(wandb: Any) -> str:
    """Say what keeps W&B from being reached, as far as that is found out quickly; empty when nothing does."""
    if not _has_key(wandb):
        return "there is no API key (`wandb login` stores one)"
    address = urlsplit(str(wandb.setup().settings.base_url))
    if address.scheme in urllib.request.getproxies():
        return ""  # only the proxy knows
    try:
        socket.create_connection((address.hostname or "", address.port or (443 if address.scheme == "https" else 80)), REACH).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached ({error.strerror or error})"
    return ""


def _has_key(wandb: Any) -> bool:
    """True where W&B would find credentials; without them it would ask at the terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup().settings
    if getattr(settings, "api_key", None):
        return True
    host = urlsplit(str(settings.base_url)).hostname or ""
    path = os.environ.get("NETRC") or next((str(p) for p in (Path.home() / ".netrc", Path.home() / "_netrc") if p.is_file()), None)
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return path is not None and netrc.netrc(path).authenticators(host) is not None
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
