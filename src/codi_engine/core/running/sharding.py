"""One run computed by several processes without any engine: ``--shard 0/2`` and ``--shard 1/2``, on one machine or on many with one disk.

Each process has its own share of the plan's units, computes them one after the other and puts them into the run's outbox
(``store/outbox.py``). The run's lock is held for moments only, by one process at a time: to make the plan, and to adopt what waits in
the outbox, in the order of units. So what is on disk in the end is what one process alone writes, byte for byte.

Units go round robin: neighbours cost nearly the same (they differ in a layer or a step), so every share costs the same; and all
processes advance side by side, so that units are adopted as they come. Blocks would let all but the first block wait until the end.

A process lives as long as it holds its lock in the outbox. Before the first edited unit all unedited ones must be committed: those of
a process that lives are waited for, those of one that does not are computed by whoever comes first.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError
from codi_engine.core.running.computing import Made
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.inputs import DATA, MODEL, model_digests
from codi_engine.core.running.marks import committable
from codi_engine.core.running.shares import Share, shards_alive
from codi_engine.core.watching.tally import Tally
from codi_engine.store.errors import Locked, refused
from codi_engine.store.layout import LEDGER, OUTBOX
from codi_engine.store.ledger import read_ledger
from codi_engine.store.lock import RunLock, holder
from codi_engine.store.outbox import LOCKED, Outbox, make_outbox, remove_empty
from codi_engine.store.provenance import read_provenance
from codi_engine.store.view import RunView

if TYPE_CHECKING:
    from codi_engine.core.model import ModelAdapter
    from codi_engine.core.running.computing import Hands
    from codi_engine.core.running.job import Job
    from codi_engine.core.running.runner import Runner
    from codi_engine.store.writer import RunWriter

#: seconds for which the run's lock is waited for where it is needed, between two looks, and for which it is held while others may wait
PATIENCE, PAUSE, MOMENT = 60.0, 0.2, 2.0
#: at most this share of a process' time goes into adopting while it has units to compute
_SHARE = 0.1
#: the lock of the one who runs the analyses, and what the run's provenance then says
FINISH, FINISHED = "finish", "finished"


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made for nothing, the innermost first."""
    with contextlib.suppress(OSError):  # something is in them
        for folder in folders:
            folder.rmdir()


class Shard:
    """One of the processes that compute a run; a context, in which the run is this process' to finish once :meth:`run` says so.

    Parameters
    ----------
    open_writer: opens the run for writing

    Raises
    ------
    UserError: another process has this share, or the run is being computed in another number of shares
    StoreError: the disk refuses
    """

    def __init__(self, runner: Runner, share: Share, open_writer: Callable[[], RunWriter]) -> None:
        self.runner, self.share, self._open = runner, share, open_writer
        self.path, self.outbox = runner.path, Outbox(runner.path)
        self._units: list[Unit] = []
        self._order: list[int] = []  # of the plan's units, as one process commits them
        self._done: set[int] = set()
        self._ledger_size = -1
        self._next = 0.0
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> Shard:
        if self.share.taken:
            self.runner.progress.note(f"shard {self.share} ({self.share.taken})")
        made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._locks.callback(_remove_empty, made)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold(self.share.name, f"shard {self.share} of it is being computed by {{}}; wait for it or stop it")
            other = next((f"{name} ({owner})" for name, owner in shards_alive(self.path).items() if name.rpartition("/")[2] != str(self.share.of)), None)
            if other is not None:
                raise UserError(f"{self.path}: is being computed in other shares, by shard {other}; give every process the same n in --shard i/n")
        except BaseException as error:  # whatever it is, neither lock nor folder may stay
            self._locks.close()
            if isinstance(error, OSError):
                raise refused(self.path, error) from None
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.outbox.close()
        self._locks.close()

    def _hold(self, name: str, taken: str) -> None:
        """Take a lock in the outbox and keep it until the end; who has it is named."""
        path = self.path / OUTBOX / f"{name}{LOCKED}"
        while True:
            try:
                make_outbox(self.path)
                lock = RunLock(path)
                break
            except Locked as error:
                raise UserError(f"{self.path}: {taken.format(error.owner)}") from None
            except FileNotFoundError:
                if not self.path.is_dir():
                    raise
                continue  # the outbox was empty, and removed by the one who left it
        self._locks.callback(remove_empty, self.path)
        self._locks.callback(lock.release)

    # ------------------------------------------------------------------------------------------ the whole

    def run(self) -> str:
        """Compute this process' share, adopt what can be, and say what others still have to do; empty when this process finishes the run."""
        runner = self.runner
        with self._writing(PATIENCE) as writer:
            runner.count(writer)
        hands = self._begin(writer)
        unedited, sweep = self._stages()
        with hands:
            runner.life.started()
            runner.cost.begin("baseline")
            self._compute("baseline", "prompts", self.share.of_units(unedited), hands)
            self._complete(unedited, hands)
            self._view.refresh()
            runner.cost.begin("sweep")
            mine = self._due(self.share.of_units(sweep))
            if mine:
                runner.run_gate(hands)
            self._compute("sweep", "cells", mine, hands)
            runner.cost.end()
        with runner.stopping.units(lambda: "what waits to be adopted"):
            self.adopt(PATIENCE)
        return self._left()

    def _begin(self, closed: RunWriter) -> Hands:
        """Load the model, and plan with the run's lock held for a moment: whoever comes first adds the plan, the others find it."""
        runner = self.runner
        adapter, net = runner.load()
        job = runner.job(adapter, net, closed)  # without the lock, since it takes its time; it reads nothing of the run
        digests = {MODEL: adapter.digest, DATA: runner.plan.data.digest, **model_digests(runner.prepared.model), **runner.digests(job)}
        with self._writing(PATIENCE) as writer:
            job.writer = writer
            runner.compare(writer, digests)
            units = self._planned(adapter, job, writer)
            self._catch_up(writer.committed)
        job.writer = self._view = RunView(self.path)
        self._units = runner.wanted(units)
        unedited, sweep = self._stages()
        self._order = [u.number for u in (*unedited, *sweep)]
        due = self._due(self._units)
        runner.complete(job, due)
        mine = {u.number for stage in (unedited, sweep) for u in self.share.of_units(stage)}
        due = [u for u in due if u.number in mine]
        runner.expect(due)
        runner.life.quiet = True
        runner.tell_plan(units, job.writer.labels, Tally(len(units), sum(len(u.keys) * u.trials for u in units if u.stage != "sources")))
        runner.caught_up(self._done)
        return runner.hands(job, units, due)

    def _planned(self, adapter: ModelAdapter, job: Job, writer: RunWriter) -> list[Unit]:
        """Plan; a run that was finished, and gets nothing new, stays so."""
        others = ", ".join(f"shard {name} ({owner})" for name, owner in shards_alive(self.path).items() if name != str(self.share))
        plans, finished = len(writer.plans), writer.provenance.get(FINISHED)
        units = self.runner.planned(adapter, job, writer, others)
        if finished and len(writer.plans) == plans:
            writer.set_provenance({**writer.provenance, FINISHED: finished})
        return units

    def _stages(self) -> tuple[list[Unit], list[Unit]]:
        return [u for u in self._units if u.stage != "sweep"], [u for u in self._units if u.stage == "sweep"]

    # ---------------------------------------------------------------------------------------- computing

    def _due(self, units: Sequence[Unit]) -> list[Unit]:
        """Return those units that are neither in the outbox nor committed; looked at in the order in which they go from one to the other."""
        waiting = self.outbox.receipts()
        self._catch_up(None)
        return [u for u in units if u.number not in self._done and u.number not in waiting]

    def _compute(self, stage: str, what: str, units: Sequence[Unit], hands: Hands) -> None:
        """Compute units of a stage and put them into the outbox."""
        runner, due = self.runner, [u for u in self._due(units) if holder(self._claim(u)) is None]
        runner.progress.start(f"{stage} of shard {self.share}", sum(len(u.keys) * u.trials for u in due), what)
        at = 0
        with runner.stopping.units(lambda: f"unit {at + 1:,} of this shard's {len(due):,}"):
            runner.stopping.check()
            for at, made in enumerate(hands.results(due)):
                self._put(made)
                runner.stopping.check()
                if time.monotonic() >= self._next:
                    self.adopt()
                if at + 1 < len(due):
                    runner.room.check(len(self._done), len(self._units))
        runner.progress.finish()

    def _put(self, made: Made) -> None:
        receipt = self.outbox.put(made.unit.number, made.unit.stage, committable(made.unit, made.arrays, made.texts))
        self.runner.computed(made.unit, receipt.files)
        self.runner.life.computed(made.unit.number, len(self._units), str(self.share))

    def _complete(self, unedited: Sequence[Unit], hands: Hands) -> None:
        """Wait until all unedited units are committed; compute those whose process does not live."""
        runner, said = self.runner, ""
        whose = {u.number: f"{n % self.share.of}/{self.share.of}" for n, u in enumerate(unedited)}
        with runner.stopping.units(lambda: "what it waits for"):
            while True:
                runner.stopping.check()
                self.adopt()
                if all(u.number in self._done for u in unedited):
                    return
                due, alive = self._due(unedited), shards_alive(self.path)
                orphans = [u for u in due if whose[u.number] not in alive or whose[u.number] == str(self.share)]
                if any(self._in_place_of_another(u, hands) for u in orphans):  # one, then look again
                    continue
                text = (
                    f"waiting for {len(due):,} unedited unit{'s' * (len(due) != 1)} of shard {', '.join(sorted({whose[u.number] for u in due}))}" if due else ""
                )
                if text and text != said:
                    said = text
                    runner.progress.start(text, 0, "")
                time.sleep(PAUSE)

    def _claim(self, unit: Unit) -> Path:
        return self.path / OUTBOX / f"unit-{unit.number:06d}{LOCKED}"

    def _in_place_of_another(self, unit: Unit, hands: Hands) -> bool:
        """Compute a unit whose own process does not; False where somebody else is about to."""
        try:
            claim = RunLock(self._claim(unit))
        except Locked:
            return False
        try:
            if self._due([unit]):
                for made in hands.results([unit]):
                    self._put(made)
        finally:
            claim.release()
        return True

    # ----------------------------------------------------------------------------------------- adopting

    @contextlib.contextmanager
    def _writing(self, patience: float) -> Iterator[RunWriter]:
        """Open the run for writing, waiting so long for the lock.

        Raises
        ------
        Locked: another process has it all the time
        """
        until = time.monotonic() + patience
        while True:
            try:
                writer = self._open()
                break
            except Locked:
                if time.monotonic() >= until:
                    raise
            time.sleep(PAUSE)
        with writer:
            yield writer

    def adopt(self, patience: float = 0.0) -> None:
        """Take what is ready into the run, in the order of units, if nobody else is about it; the lock is given up every few seconds."""
        began, more = time.monotonic(), True
        while more and self._ready():
            try:
                with self._writing(patience) as writer:
                    more = self._take(writer)
            except Locked:
                break  # whoever has it adopts, or the next call does
        self._next = time.monotonic() + (time.monotonic() - began) / _SHARE

    def _ready(self) -> bool:
        """Look whether the next unit to be committed waits; what others have committed is read from the ledger."""
        self._catch_up(None)
        first = next((n for n in self._order if n not in self._done), None)
        return first is not None and first in self.outbox.receipts()

    def _take(self, writer: RunWriter) -> bool:
        """Adopt what waits in order; True when it was left because others may want the lock."""
        until, runner = time.monotonic() + MOMENT, self.runner
        self._catch_up(writer.committed)
        waiting, units = self.outbox.receipts(), {u.number: u for u in self._units}
        for number in self._order:
            if number in self._done:
                continue
            if number not in waiting or time.monotonic() > until:
                return number in waiting
            runner.commit(writer, Made(units[number], {}, {}, waiting[number]))
            self._done.add(number)
        return False

    def _catch_up(self, committed: Iterable[int] | None) -> None:
        """See what is committed: as the writer says, or as the ledger does where it has grown."""
        if committed is None:
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(self.path / LEDGER).st_size
                if size == self._ledger_size:
                    return
                self._ledger_size = size
            committed = [int(r["unit"]) for r in read_ledger(self.path / LEDGER).records if r.get("kind") == "unit"]
        self._done |= set(committed)
        self.runner.caught_up(self._done)

    # ------------------------------------------------------------------------------------------ the end

    def _left(self) -> str:
        """Say what is done and what others have to do; empty where nothing is left but to finish the run, and nobody else does that."""
        unedited, sweep = self._stages()
        mine = [*self.share.of_units(unedited), *self.share.of_units(sweep)]
        said = f"shard {self.share}: its {len(mine):,} units are done"
        due = {u.number for u in self._due(self._units)}
        if due:
            whose = sorted({n % self.share.of for stage in (unedited, sweep) for n, u in enumerate(stage) if u.number in due})
            names = ", ".join(f"{n}/{self.share.of}" for n in whose[:6]) + (", …" if len(whose) > 6 else "")
            return f"{said}; {len(due):,} of {len(self._units):,} units of the run are still with other shards ({names})"
        waits = sum(u.number not in self._done for u in self._units)
        if waits:
            return f"{said}; {waits:,} of {len(self._units):,} units wait in the outbox: `codi-engine merge {self.path}` takes them in"
        if read_provenance(self.path).get(FINISHED):
            return f"{said}; the run is complete"
        try:
            self._hold(FINISH, "it is being finished by {}")
        except UserError as error:
            return f"{said}; all {len(self._units):,} units of the run are committed, {str(error).removeprefix(f'{self.path}: ')}"
        if read_provenance(self.path).get(FINISHED):  # meanwhile
            return f"{said}; the run is complete"
        self.runner.life.finishes()
        return ""

    def finished(self) -> None:
        """Record that the run is finished, its analyses included."""
        with self._writing(PATIENCE) as writer:
            self.runner.stamp(writer)
