"""A Dask cluster: processes of this machine that live as long as the command, or the workers of a scheduler that is there."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.spreading.apart import apart

if TYPE_CHECKING:
    from distributed import Client, Future

#: seconds within which a scheduler must answer
ANSWER = 6.0
#: seconds after which a scheduler that has answered before is taken to be gone
GONE = 60.0
#: seconds that the processes of a local cluster get to begin
BEGIN = 120.0
#: where a worker of a local cluster writes what it says, so that the terminal stays the command's
WORDS = "CODI_ENGINE_WORDS"
#: what can spread work
EXECUTORS = ("dask",)
_LOGGERS = ("distributed", "tornado", "asyncio")


@dataclass(frozen=True)
class Spread:
    """That work is spread over a cluster. ``scheduler``: its address; None for processes of this machine."""

    scheduler: str | None = None


@dataclass(frozen=True)
class Member:
    """One worker process of a cluster."""

    address: str
    name: str
    threads: int
    pid: int | None = None


def spread_of(executor: str | None, scheduler: str | None) -> Spread | None:
    """Return what ``--executor`` and ``--scheduler`` ask for; None for neither.

    Raises
    ------
    UserError: no such executor, a scheduler without one or that does not answer, or its package is not here
    """
    if executor is None:
        if scheduler is not None:
            raise UserError("--scheduler: needs --executor dask")
        return None
    if executor not in EXECUTORS:
        raise UserError(f"--executor: '{executor}' is unknown; write dask")
    try:
        import distributed  # noqa: F401 - whether it is here
    except ImportError:
        raise UserError("--executor dask: needs the package distributed: pip install 'codi-engine[dask]'") from None
    spread = Spread(scheduler)
    if scheduler is not None:
        with Cluster(spread, 0):  # before anything is loaded
            pass
    return spread


class Cluster(contextlib.AbstractContextManager["Cluster"]):
    """Workers that compute what they are given; a context that ends what it started.

    Parameters
    ----------
    spread: where the workers are
    workers: how many processes a local cluster has
    memory: bytes that each of them may hold before it is ended; None for no limit

    Raises
    ------
    UserError: no scheduler answers
    """

    def __init__(self, spread: Spread, workers: int, memory: int | None = None) -> None:
        self.spread, self._count, self.memory = spread, workers, memory
        self._stack = contextlib.ExitStack()
        self.client: Client

    @property
    def local(self) -> bool:
        """True for processes of this machine that this object started."""
        return self.spread.scheduler is None

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet())
            if self.spread.scheduler is None:
                self._words = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codi-engine-workers-", ignore_cleanup_errors=True)))
                address = stack.enter_context(_local(self._count, self.memory, self._words))
            else:
                address = self.spread.scheduler
            self.client = stack.enter_context(_client(address))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def members(self) -> list[Member]:
        """Return the workers that the scheduler knows now.

        Raises
        ------
        UserError: it is gone
        """
        try:
            found = self.client.sync(self.client.scheduler.identity, n_workers=-1, callback_timeout=GONE)
        except (OSError, TimeoutError) as error:
            raise UserError(
                f"the Dask scheduler at {self.client.scheduler.address} no longer answers ({type(error).__name__}); the same command goes on"
            ) from None
        return [Member(address, str(w["name"]), int(w["nthreads"]), w.get("pid")) for address, w in found["workers"].items()]

    def submit(self, member: Member, call: Callable[..., Any], *args: Any) -> Future:
        """Have one worker call a function, and no other; the scheduler need not have codi-engine.

        Parameters
        ----------
        call: of a module that the worker can import; only its name travels
        args: plain values, as JSON has them
        """
        return self.client.submit(_called, name_of(call), json.dumps(args), workers=[member.address], allow_other_workers=False, pure=False, retries=0)

    def held_too_much(self, member: Member) -> float | None:
        """Return the bytes for which a worker was ended by its nanny; None where that is not why it is gone."""
        try:
            events = self.client.get_events("worker-restart-memory")
        except (OSError, TimeoutError):  # the scheduler is gone too
            return None
        return next((float(about["rss"]) for _, about in events if about.get("worker") == member.address), None)

    def last_words(self, member: Member) -> str:
        """Return the last line that a worker of a local cluster wrote; empty where none is known."""
        if not self.local:
            return ""
        try:
            said = (self._words / f"{member.name}.txt").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return lines[-1][:160] if lines else ""


@contextlib.contextmanager
def _client(address: str) -> Iterator[Client]:
    from distributed import Client

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # versions of packages: we compare those that matter
        try:
            asyncio.run(_greet(address))  # a client that cannot connect prints tracebacks when it is collected, or waits for ever
            client = Client(address, timeout=ANSWER, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise UserError(f"--scheduler {address}: no Dask scheduler answers there ({_reason(error)}); start one with: dask scheduler") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"--scheduler {address}: is no address of a Dask scheduler ({_reason(error)}); write tcp://HOST:8786") from None
    try:
        yield client
    finally:
        with contextlib.suppress(OSError, TimeoutError):  # the scheduler is gone: there is nothing to say goodbye to
            client.close(timeout=2)


async def _greet(address: str) -> None:
    """Connect to a scheduler and leave again.

    Raises
    ------
    OSError, TimeoutError: nobody answers, or something else than Dask does
    ValueError: no address
    """
    from distributed import Security
    from distributed.core import connect

    try:
        comm = await asyncio.wait_for(connect(address, timeout=ANSWER, **Security().get_connection_args("client")), 2 * ANSWER)
    except MemoryError:  # the first bytes of another protocol, taken for a length
        raise OSError("something else than Dask answers") from None
    await comm.close()


def name_of(thing: Callable[..., Any]) -> str:
    """Return the name under which another process finds a function or class: ``module:name``."""
    return f"{thing.__module__}:{thing.__qualname__}"


def named(name: str) -> Any:
    """Return what :func:`name_of` has named."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _called(name: str, given: str) -> Any:
    """Call a function in a worker."""
    import importlib
    import json

    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(*json.loads(given))


_called.__module__ = "__main__"  # so that it travels as code: a process without codi-engine can say that it has none


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


@contextlib.contextmanager
def _local(count: int, memory: int | None, words: Path) -> Iterator[str]:
    """Start a cluster of this machine: loopback only, no page of its own, quiet; yield its address."""
    import dask
    from distributed import LocalCluster

    environment = dict(os.environ)
    try:
        with dask.config.set(_settings()):
            cluster = LocalCluster(
                n_workers=count, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
                memory_limit=memory, local_directory=str(words / "scratch"), worker_class=_nanny(), death_timeout=BEGIN, env={WORDS: str(words)},
            )  # fmt: skip
            _restore(environment)
            try:
                yield cluster.scheduler_address
            finally:
                cluster.close(timeout=10)
    finally:
        _restore(environment)


def _settings() -> dict[str, Any]:
    """Return Dask's settings: a process that dies is replaced, whatever number has died; what a worker may hold is its limit alone."""
    return {
        "distributed.worker.preload": ["codi_engine.core.spreading.preload"], "distributed.worker.daemon": True,
        "distributed.worker.memory.target": False, "distributed.worker.memory.spill": False, "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 1.0, "distributed.scheduler.http.routes": [], "distributed.worker.http.routes": [],
        "distributed.nanny.pre-spawn-environ": {}, "distributed.worker.profile.enabled": False, "distributed.scheduler.work-stealing": False,
        "distributed.worker.multiprocessing-method": "spawn", "distributed.comm.timeouts.connect": "30s", "distributed.admin.log-format": "%(message)s",
    }  # fmt: skip


def _nanny() -> type[Any]:
    """Return Dask's nanny, as one that starts processes apart from the user's script and signals."""
    from distributed import Nanny

    class Apart(Nanny):  # type: ignore[misc]
        async def instantiate(self) -> Any:
            with apart():
                return await super().instantiate()

    return Apart


def _restore(environment: dict[str, str]) -> None:
    """Take back what the nannies set in this process' environment for the sake of their children."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's log out of the terminal: whatever matters to the user is said by us."""
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    for logger, _ in before:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


def waiting_for(cluster: Cluster) -> str:
    """Say that workers are waited for, and how one is started."""
    address = cluster.client.scheduler.address
    return f"waiting for workers at {address}: dask worker {address}"


def wait_for_members(cluster: Cluster, say: Callable[[str], None]) -> Sequence[Member]:
    """Return the workers of a cluster; where it has none yet, say so and wait for them."""
    said = False
    while not (found := cluster.members()):
        if not said:
            say(waiting_for(cluster))
            said = True
        time.sleep(0.5)
    return found
