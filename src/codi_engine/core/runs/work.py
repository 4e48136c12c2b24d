"""What an analysis works with: bounded memory, threads, progress, and partial results that survive an interruption."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import Field, field_validator

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import MOST_MEMORY, Options
from codi_engine.core.progress import Progress
from codi_engine.store.errors import unwritten
from codi_engine.store.files import write_durably

#: what a computation leaves of its part: small named arrays
Partial = Mapping[str, np.ndarray]
#: what the partial results of an unfinished analysis belong to, beside them
IDENTITY = "identity.json"
T = TypeVar("T")


class StreamOptions(Options):
    """``memory``: GB that the analysis may hold at a time. ``threads``: how many compute (default: as many as there are cores).

    Neither changes the result.
    """

    memory: float = Field(default=2.0, gt=0.0)
    threads: int | None = Field(default=None, ge=1)

    @field_validator("memory")
    @classmethod
    def _is_some_machine_s(cls, value: float) -> float:
        if value > MOST_MEMORY:
            raise ValueError(f"is in GB; no machine has more than {MOST_MEMORY:,}, write less")
        return value


class Part(Protocol):
    """A piece of the input that is read and computed at once: its name among the partial results, and its bytes."""

    @property
    def key(self) -> str: ...

    @property
    def bytes(self) -> int: ...


P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class _Named:
    """A partial result that belongs to no part."""

    key: str
    bytes: int = 0


@dataclass
class Work:
    """Given to :meth:`Analysis.analyze`.

    Attributes
    ----------
    folder: where partial results are kept until the analysis has finished; None keeps them in memory
    memory: bytes that may be held at a time
    threads: computing threads
    progress: told of bytes read
    """

    folder: Path | None = None
    memory: int = 2_000_000_000
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    progress: Progress = field(default_factory=Progress)
    _kept: dict[tuple[str, str], Partial] = field(default_factory=dict)

    @property
    def spreads(self) -> bool:
        """Return whether the parts of streams are computed elsewhere, by the workers of a cluster."""
        return False

    @property
    def piece(self) -> int:
        """Return the bytes that one part may have, so that all parts in flight stay within the memory."""
        return max(self.memory // (2 * (self.threads + 2)), 1 << 20)

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Keep the partial results of an interrupted analysis of the same identity; remove others."""
        if self.folder is None:
            return
        text = json.dumps(identity, sort_keys=True, default=str)
        try:
            known = self.folder / IDENTITY
            if known.exists() and known.read_text(encoding="utf-8") == text:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_durably(self.folder, IDENTITY, text.encode())
        except OSError as error:
            raise UserError(unwritten(self.folder, error)) from None

    def clear(self) -> None:
        """Remove partial results: the analysis has finished."""
        self._kept.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def stream(
        self, stage: str, parts: Sequence[P], read: Callable[[P, Any], T], compute: Callable[[P, T], Partial], what: str = "B"
    ) -> Iterator[Partial]:  # fmt: skip
        """Yield the partial result of every part, in order.

        One thread reads ahead while others compute. What has been computed is durable and is not computed again after an
        interruption. The order of the results, and so of every sum over them, does not depend on the threads.

        Parameters
        ----------
        stage: shown, and part of the partial results' names
        read: (part, data of an earlier part to be used again, or None) → data; called by one thread, in order
        compute: (part, data) → partial result
        what: is counted in the parts' ``bytes``, where these are something else
        """
        done = {part.key for part in parts if self._stored(stage, part) is not None}
        self.progress.start(stage, sum(p.bytes for p in parts), what)
        pipeline = _Pipeline(self, stage, [p for p in parts if p.key not in done], read, compute)
        try:
            for part in parts:
                if part.key in done:
                    stored = self._stored(stage, part)
                    assert stored is not None
                    self.progress.advance(part.bytes)
                    yield stored
                else:
                    yield pipeline.result(part.key)
        finally:
            pipeline.close()
            self.progress.finish()

    def read_ahead(self, stage: str, parts: Sequence[P], read: Callable[[P, Any], T], skip: int = 0) -> Iterator[tuple[int, P, T]]:
        """Yield (number, part, data) in order, the next part being read meanwhile; nothing is kept.

        For sums that must be formed in order. An earlier part's data may be overwritten once the next one has been asked for.

        Parameters
        ----------
        skip: parts at the beginning that are not needed any more
        """
        self.progress.start(stage, sum(p.bytes for p in parts), "B")
        self.progress.advance(sum(p.bytes for p in parts[:skip]))
        spare: list[T] = []
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
            coming = pool.submit(read, parts[skip], None) if skip < len(parts) else None
            for number in range(skip, len(parts)):
                assert coming is not None
                data = coming.result()
                if number + 1 < len(parts):
                    coming = pool.submit(read, parts[number + 1], spare.pop() if spare else None)
                yield number, parts[number], data
                self.progress.advance(parts[number].bytes)
                spare.append(data)
        self.progress.finish()

    def keep(self, name: str, state: Partial) -> None:
        """Make an intermediate state durable."""
        self.store(name, _Named("state"), state)

    def kept(self, name: str) -> Partial | None:
        """Return the last state of that name."""
        return self._stored(name, _Named("state"))

    # ------------------------------------------------------------------------------------------ partials

    def partial(self, stage: str, part: Part) -> Partial:
        """Return a partial result that :meth:`stream` has yielded before."""
        stored = self._stored(stage, part)
        if stored is None:
            raise UserError(f"{self.folder}: the partial result {stage}-{part.key} is gone; repeat the command")
        return stored

    def _stored(self, stage: str, part: Part) -> Partial | None:
        """Return a durable partial result; None when there is none, or a torn one."""
        if self.folder is None:
            return self._kept.get((stage, part.key))
        try:
            with (self.folder / f"{stage}-{part.key}.npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError):
            return None
        except Exception as error:  # zipfile has errors of its own for damaged files
            if type(error).__name__ in ("BadZipFile", "error", "UnpicklingError"):
                return None
            raise

    def store(self, stage: str, part: Part, partial: Partial) -> None:
        """Make a partial result durable."""
        if self.folder is None:
            self._kept[stage, part.key] = partial
            return
        buffer = io.BytesIO()
        np.savez(buffer, **partial)  # type: ignore[arg-type]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(self.folder, f"{stage}-{part.key}.npz", buffer.getvalue())
        except OSError as error:
            raise UserError(unwritten(self.folder, error)) from None


class _Pipeline:
    """One reading thread, ``threads`` computing ones, at most ``threads`` + 2 parts in memory."""

    def __init__(self, work: Work, stage: str, parts: Sequence[Any], read: Callable[..., Any], compute: Callable[..., Partial]) -> None:
        self._work, self._stage, self._read, self._compute = work, stage, read, compute
        self._results: dict[str, Future[Partial]] = {part.key: Future() for part in parts}
        self._room = threading.Semaphore(work.threads + 2)
        self._used: list[Any] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(work.threads, thread_name_prefix="compute")
        futures = [(part, self._results[part.key]) for part in parts]  # before the consumer can take any of them
        self._reader = threading.Thread(target=self._read_all, args=(futures,), name="prefetch", daemon=True)
        self._reader.start()

    def result(self, key: str) -> Partial:
        return self._results.pop(key).result()

    def _read_all(self, futures: Sequence[tuple[Any, Future[Partial]]]) -> None:
        for part, future in futures:
            self._room.acquire()
            if self._stop.is_set():
                return
            try:
                data = self._read(part, self._used.pop() if self._used else None)
                self._work.progress.advance(part.bytes)
            except BaseException as error:  # handed to the consumer, who raises it
                future.set_exception(error)
                return
            self._pool.submit(self._one, part, data, future)

    def _one(self, part: Any, data: Any, future: Future[Partial]) -> None:
        try:
            if self._stop.is_set():
                return
            partial = self._compute(part, data)
            self._work.store(self._stage, part, partial)
            future.set_result(partial)
        except BaseException as error:  # handed to the consumer, who raises it
            future.set_exception(error)
        finally:
            self._used.append(data)
            self._room.release()

    def close(self) -> None:
        self._stop.set()
        self._room.release()
        self._reader.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._used.clear()
