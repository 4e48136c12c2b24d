"""An analysis whose parts are computed by the workers of a cluster.

A worker repeats the analysis up to the stage whose parts are wanted: what the analysis works out for itself before (and from the
stages before, whose partial results are durable) is the same there, so that nothing of it has to travel, and no code either. Parts are
cut as one process cuts them, and merged here, in their order: the result is the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from codi_engine.core.calling import calling
from codi_engine.core.errors import UserError
from codi_engine.core.planning.machine import peak_bytes
from codi_engine.core.progress import Progress
from codi_engine.core.runs.work import IDENTITY, Part, Partial, Work
from codi_engine.core.spreading.cluster import Cluster, Spread
from codi_engine.core.spreading.crew import Crew
from codi_engine.core.spreading.entering import Common

if TYPE_CHECKING:
    from codi_engine.core.plugin import Analysis
    from codi_engine.core.runs.results import Run

T = TypeVar("T")
P = TypeVar("P", bound=Part)
#: parts of which a cluster takes over the computation; fewer are not worth starting it
LEAST = 2
#: bytes that this process holds, where the system does not say
_USUAL = 1_000_000_000
#: bytes that the libraries take in a worker that begins to compute
_LIBRARIES = 600_000_000


@dataclass(frozen=True)
class Setting:
    """What a worker repeats the analysis with.

    Attributes
    ----------
    analysis, options: the plugin's full name, and its options
    runs: paths
    folder: of the partial results
    memory: bytes that one worker may hold; ``piece``: bytes of a part, as the process that merges cuts them
    threads: of torch, where the analysis uses it
    """

    analysis: str
    options: Mapping[str, Any]
    runs: Sequence[str]
    folder: str
    memory: int
    piece: int
    threads: int | None


class SpreadWork(Work):
    """A :class:`Work` whose streams are computed by the workers of a cluster; use :func:`spread_work`."""

    spread: Spread
    runs: Sequence[Run]
    analysis: Analysis[Any]

    @property
    def spreads(self) -> bool:
        return True

    def prepare(self, spread: Spread, runs: Sequence[Run], analysis: Analysis[Any]) -> None:
        """Take in what the workers will repeat."""
        self.spread, self.runs, self.analysis = spread, runs, analysis
        self._stages, self._workers = 0, self.threads  # an analysis may change its threads
        self._stack = contextlib.ExitStack()
        self._made: Crew | None = None

    def end(self) -> None:
        """End the cluster, or leave its workers to others."""
        self._made = None
        self._stack.close()

    def stream(
        self, stage: str, parts: Sequence[P], read: Callable[[P, Any], T], compute: Callable[[P, T], Partial], what: str = "B"
    ) -> Iterator[Partial]:  # fmt: skip
        """As :meth:`Work.stream`; the workers call their own ``read`` and ``compute``."""
        number, self._stages = self._stages, self._stages + 1
        missing = [part for part in parts if self._stored(stage, part) is None]
        if len(missing) < LEAST:
            yield from super().stream(stage, parts, read, compute, what)
            return
        crew = self._crew()
        self.progress.start(stage, sum(p.bytes for p in parts), what)
        due = {part.key: part.bytes for part in missing}
        self.progress.advance(sum(p.bytes for p in parts if p.key not in due))
        waiting = deque(part.key for part in missing)
        try:
            for part in parts:
                while part.key in due:
                    while waiting and crew.room(len(waiting)):
                        crew.give((number, stage, waiting.popleft()))
                    for answer in crew.answers():
                        self.progress.advance(due.pop(answer.task[2]))
                yield self.partial(stage, part)
        finally:
            self.progress.finish()

    def _crew(self) -> Crew:
        """Return the workers that repeat the analysis; the first call starts or finds them."""
        if self._made is None:
            bounded = self.spread.scheduler is None and hasattr(self.analysis.options, "memory")  # without it nobody has said what it may hold
            share = max(self.memory // self._workers, 1 << 20)
            limit = (peak_bytes() or _USUAL) + _LIBRARIES + share if bounded else None  # a worker will hold what this process does, and its share
            self.progress.start("workers repeat the analysis so far", 0, "")
            cluster = self._stack.enter_context(Cluster(self.spread, self._workers, limit))
            setting = self._setting(share)
            common = Common.of({str(run.path.absolute()): run.digest for run in self.runs})
            crew = Crew(
                cluster, common, Replay, lambda member: (asdict(setting),), welcome=lambda *_: None, say=self.progress.note,
                doing=lambda task: f"computed part {task[2]} of {task[1]}",
            )  # fmt: skip
            self._stack.callback(crew.end)
            crew.begin()
            self.progress.finish()
            self._made = crew
        return self._made

    def _setting(self, share: int) -> Setting:
        from codi_engine.core.plugins import plugin_manager

        assert self.folder is not None
        cls = type(self.analysis)
        name = next((r.full_name for r in plugin_manager().registered if r.cls is cls), cls.name)
        torch = sys.modules.get("torch")
        threads = None if torch is None else int(torch.get_num_threads())
        options = self.analysis.options.model_dump(mode="json")
        return Setting(name, options, [str(run.path.absolute()) for run in self.runs], str(self.folder.absolute()), share, self.piece, threads)


@contextlib.contextmanager
def spread_work(work: Work, spread: Spread, runs: Sequence[Run], analysis: Analysis[Any]) -> Iterator[SpreadWork]:
    """Yield a work of the same folder, memory and threads whose parts a cluster computes; ends the cluster."""
    made = SpreadWork(work.folder, work.memory, work.threads, work.progress)
    made.prepare(spread, runs, analysis)
    try:
        yield made
    finally:
        made.end()


# ------------------------------------------------------------------------------------------- in a worker


class _Over(BaseException):
    """Ends the analysis that a worker repeats: its last part has been computed."""


@dataclass
class _Stage:
    """A stage that the repeated analysis has reached."""

    number: int
    parts: Mapping[str, Part]
    read: Callable[[Any, Any], Any]
    compute: Callable[[Any, Any], Partial]


class _Repeated(Work):
    """The worker's own :class:`Work`: at each stage it waits until the stage is over, and then reads what all have computed."""

    replay: Replay
    cut: int

    @property
    def piece(self) -> int:
        return self.cut

    @property
    def spreads(self) -> bool:
        return True

    def begin(self, identity: Mapping[str, Any]) -> None:
        assert self.folder is not None
        known = self.folder / IDENTITY
        if not known.exists() or known.read_text(encoding="utf-8") != json.dumps(identity, sort_keys=True, default=str):
            raise UserError(f"sees other partial results in {self.folder} than this process; workers need the same file system")

    def clear(self) -> None:
        return None

    def keep(self, name: str, state: Partial) -> None:
        return None

    def stream(
        self, stage: str, parts: Sequence[P], read: Callable[[P, Any], T], compute: Callable[[P, T], Partial], what: str = "B"
    ) -> Iterator[Partial]:  # fmt: skip
        self.replay.reached(_Stage(self.replay.stages, {part.key: part for part in parts}, read, compute))
        for part in parts:
            yield self.partial(stage, part)


class Replay:
    """An analysis repeated in a worker, in a thread of its own, up to the stage whose parts are wanted."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        from codi_engine.core.plugins import plugin_manager
        from codi_engine.core.runs.results import open_run

        setting = Setting(**given)
        self.setting, self.stages = setting, 0
        self._state = threading.Condition()
        self._stage: _Stage | None = None
        self._wanted, self._over = 0, False
        self._error: BaseException | None = None
        self._reading, self._computing = threading.Lock(), threading.Lock()
        self._used: list[Any] = []
        self.analysis: Analysis[Any] = plugin_manager().build(
            "analysis", {"plugin": setting.analysis, **setting.options}, where="analysis", source=setting.analysis
        )
        runs = [open_run(path) for path in setting.runs]
        self.work = _Repeated(Path(setting.folder), setting.memory, 1, Progress())
        self.work.replay, self.work.cut = self, setting.piece
        self._thread = threading.Thread(target=partial(self._run, runs), name="repeated analysis", daemon=True)
        self._thread.start()

    def entered(self) -> None:
        """Nothing more is told of it."""

    def do(self, task: tuple[int, str, str]) -> None:
        """Read and compute one part, and make its partial result durable."""
        number, name, key = task
        stage = self._at(number)
        part = stage.parts[key]
        if self.work._stored(name, part) is not None:
            return  # another worker was slower to die than to compute it
        with self._reading, calling(self.analysis, "analyze"):
            data = stage.read(part, self._used.pop() if self._used else None)
        with self._computing, calling(self.analysis, "analyze"):
            self.work.store(name, part, stage.compute(part, data))
            self._used[:] = [data]

    def close(self) -> None:
        """End the repeated analysis."""
        with self._state:
            self._over = True
            self._state.notify_all()
        self._thread.join(timeout=5)
        self._stage = None
        self._used.clear()

    # ---------------------------------------------------------------------------- between the two threads

    def _run(self, runs: Sequence[Run]) -> None:
        try:
            with calling(self.analysis, "analyze"):
                self.analysis.analyze(runs, self.work)
        except _Over:
            return
        except BaseException as error:  # told to whoever asks for a part
            with self._state:
                self._error = error
                self._state.notify_all()

    def reached(self, stage: _Stage) -> None:
        """Offer a stage, and wait in the analysis' thread until a later one is wanted."""
        if "torch" in sys.modules and self.setting.threads is not None:
            sys.modules["torch"].set_num_threads(self.setting.threads)
        with self._state:
            self.stages += 1
            self._stage = stage
            self._used.clear()
            self._state.notify_all()
            self._state.wait_for(lambda: self._over or self._wanted > stage.number)
            if self._over:
                raise _Over
            self._stage = None

    def _at(self, number: int) -> _Stage:
        """Return a stage, once the analysis has reached it; every stage before it is over."""
        with self._state:
            self._wanted = max(self._wanted, number)
            self._state.notify_all()
            self._state.wait_for(lambda: self._error is not None or (self._stage is not None and self._stage.number == number))
            if self._error is not None:
                raise self._error
            assert self._stage is not None
            return self._stage
