"""Hands tasks to the workers of a cluster, one by one, and hands them out again when a worker dies."""

from __future__ import annotations

import queue
import time
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError, WorkerDied
from codi_engine.core.spreading.cluster import Cluster, Member, name_of, wait_for_members, waiting_for
from codi_engine.core.spreading.entering import Common, Entered, enter, held, release
from codi_engine.core.spreading.failures import Failed, Leaves, raised

if TYPE_CHECKING:
    from distributed import Future

#: tasks that a worker holds: the one it computes, and one that waits for it
DEPTH = 2
#: workers in a row that may die over one task (or before they begin) until the work is given up
DEATHS = 6
#: seconds that idle workers get to give up what they made
PATIENCE = 10.0
#: seconds between two looks at who is there
LOOK = 1.0


@dataclass
class _Hand:
    """A worker as this process sees it. ``tasks``: what it was given and has not answered; ``leaves``: it takes no more."""

    member: Member
    host: str = ""
    ready: bool = False
    leaves: bool = False
    tasks: dict[Hashable, Future] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.member.address} ({self.host})" if self.host else self.member.address


@dataclass(frozen=True)
class Answer:
    """What a worker answered to a task."""

    task: Any
    worker: str
    value: Any


class Crew:
    """The workers of a cluster that have what the work needs.

    Parameters
    ----------
    common: what they must share with this process
    make: what each of them makes once, from the plain values that ``given`` returns for it; has ``entered()``, ``do(task)`` and ``close()``
    welcome: told of every worker that begins (its address, what ``entered()`` gave); raises to refuse it
    say: told of workers that die, in one line
    """

    def __init__(
        self,
        cluster: Cluster,
        common: Common,
        make: Callable[..., Any],
        given: Callable[[Member], tuple[Any, ...]],
        *,
        welcome: Callable[[str, Any], None],
        say: Callable[[str], None],
        doing: Callable[[Any], str] = str,
    ) -> None:
        self.cluster, self._common, self._make, self._given = cluster, common, make, given
        self._welcome, self._say, self._doing = welcome, say, doing
        self.token = uuid.uuid4().hex
        self._hands: dict[str, _Hand] = {}
        self._answers: queue.SimpleQueue[tuple[_Hand, Hashable, Future]] = queue.SimpleQueue()
        self._again: list[Any] = []
        self._deaths: Counter[Hashable] = Counter()
        self._early = 0
        self._looked = float("-inf")
        self._other: set[str] = set()
        self.died = 0

    def begin(self) -> None:
        """Wait for the first worker that has what the work needs."""
        wait_for_members(self.cluster, self._say)
        while not any(hand.ready for hand in self._hands.values()):
            self._listen(LOOK)

    def all_begun(self) -> None:
        """Wait for all workers that are there now."""
        while not self._hands or not all(hand.ready or hand.leaves for hand in self._hands.values()):
            self._listen(LOOK)

    def end(self, at_once: bool = False) -> None:
        """Take back what was given, and let the workers give up what they made; ``at_once``: without waiting for them."""
        busy = any(hand.tasks for hand in self._hands.values())
        for hand in self._hands.values():
            for future in hand.tasks.values():
                future.cancel()
        if not self.cluster.local or not (busy or at_once):  # busy processes of a local cluster are ended with it
            self._let_go(at_once or busy)
        self._hands.clear()

    def _let_go(self, at_once: bool) -> None:
        from distributed import fire_and_forget, wait

        try:
            futures = [self.cluster.submit(hand.member, release, self.token) for hand in self._hands.values() if hand.ready]
            fire_and_forget(futures)
            if not at_once:
                wait(futures, timeout=PATIENCE)
        except Exception:  # a worker or the scheduler is gone, or still computes: what it made goes when it is given other work
            return

    # ------------------------------------------------------------------------------------------- giving

    @property
    def size(self) -> int:
        """How many workers may be given work now."""
        return sum(hand.ready for hand in self._hands.values())

    def room(self, waiting: int) -> bool:
        """Say whether some worker can be given one of so many waiting tasks; the last ones do not wait behind others.

        What has to be given again, the next :meth:`answers` gives first: results are taken in order.
        """
        return not self._again and self._free(waiting) is not None

    def _free(self, waiting: int) -> _Hand | None:
        ready = [hand for hand in self._hands.values() if hand.ready]
        depth = DEPTH if waiting > len(ready) else 1
        free = [hand for hand in ready if len(hand.tasks) < depth]
        return min(free, key=lambda hand: len(hand.tasks)) if free else None

    def give(self, task: Hashable) -> None:
        """Have a task computed by the worker that has least to do; there is :meth:`room`."""
        hand = self._free(len(self._hands) + 1)
        if hand is None:
            self._again.append(task)
        else:
            self._submit(hand, task, _do, self.token, task)

    def answers(self) -> Iterator[Answer]:
        """Wait for answers, :data:`LOOK` seconds at most, and yield those that are there."""
        while self._again and (hand := self._free(len(self._again))) is not None:
            task = self._again.pop(0)
            self._submit(hand, task, _do, self.token, task)
        yield from self._listen(LOOK)

    def _submit(self, hand: _Hand, task: Hashable, call: Callable[..., Any], *args: Any) -> None:
        future = self.cluster.submit(hand.member, call, *args)
        hand.tasks[task] = future
        future.add_done_callback(lambda done: self._answers.put((hand, task, done)))

    # ---------------------------------------------------------------------------------------- listening

    def _listen(self, seconds: float) -> list[Answer]:
        self._look()
        found: list[Answer] = []
        try:
            event = self._answers.get(timeout=seconds)
            while True:
                found += self._take(*event)
                event = self._answers.get_nowait()
        except queue.Empty:
            return found

    def _look(self) -> None:
        """See which workers have come and which are gone."""
        if time.monotonic() - self._looked < LOOK:
            return
        members = {m.address: m for m in self.cluster.members()}
        if self._hands and not members and not self.cluster.local:
            self._say(f"no worker is left; {waiting_for(self.cluster)}")
        for address in self._hands.keys() - members.keys():
            self._gone(self._hands.pop(address))
        for address in members.keys() - self._hands.keys():
            hand = self._hands[address] = _Hand(members[address])
            self._submit(hand, _ENTERING, _enter, asdict(self._common), self.token, name_of(self._make), *self._given(hand.member))
        self._looked = time.monotonic()

    def _take(self, hand: _Hand, task: Hashable, future: Future) -> list[Answer]:
        if task not in hand.tasks or hand.tasks[task] is not future:
            return []  # its worker was found gone meanwhile
        if future.status != "finished":
            return self._lost(hand, task, future)
        del hand.tasks[task]
        value, leaves = future.result()
        if leaves:
            self._leaves(hand)
        if isinstance(value, _Left):
            self._again += [task] if task is not _ENTERING else []
            return []
        if isinstance(value, _Taken):  # by another command: it has to begin anew
            self._again.append(task)
            self._forget(hand)
            return []
        if isinstance(value, Failed):
            raise self._raised(hand, value, entering=task is _ENTERING)
        if isinstance(value, Entered):
            self._begun(hand, value)
            return []
        self._deaths.pop(task, None)
        return [Answer(task, hand.title, value)]

    def _lost(self, hand: _Hand, task: Hashable, future: Future) -> list[Answer]:
        """A task ended without an answer: its worker died, or could not even read it."""
        error = future.exception() if future.status == "error" else None
        if task is _ENTERING and isinstance(error, (ImportError, AttributeError, TypeError)):
            want = self._common.packages["codi-engine"]
            raise UserError(f"{hand.title}: cannot begin ({type(error).__name__}: {str(error)[:120]}); it needs codi-engine {want} with all its plugins")
        if error is not None and type(error).__name__ not in ("KilledWorker", "NoValidWorkerError"):
            raise raised(hand.title, Failed.of(error if isinstance(error, Exception) else RuntimeError(str(error))))
        self._looked = float("-inf")  # look who is gone; what this worker had is handed out again then
        if self._hands.get(hand.member.address) is not hand:
            return []
        del hand.tasks[task]
        if task is _ENTERING:
            self._forget(hand)
        else:
            self._again.append(task)
        return []

    def _leaves(self, hand: _Hand) -> None:
        """Give a worker no more: it was asked to end."""
        if not hand.leaves:
            self._say(f"{hand.title}: was asked to end, and leaves; its work goes to another one")
        hand.leaves, hand.ready = True, False

    def _forget(self, hand: _Hand) -> None:
        """Let a worker begin anew, if it is still there at the next look."""
        if self._hands.get(hand.member.address) is hand:
            del self._hands[hand.member.address]

    def _begun(self, hand: _Hand, value: Entered) -> None:
        hand.host, hand.ready = value.host, not hand.leaves
        hand.member = Member(hand.member.address, hand.member.name, hand.member.threads, value.pid)
        if value.other and value.other not in self._other:
            self._other.add(value.other)
            self._say(f"{hand.title} has {value.other}: results may agree to rounding, not bit for bit")
        self._welcome(hand.title, value.more)
        self._early = 0

    def _raised(self, hand: _Hand, failed: Failed, entering: bool) -> Exception:
        error = raised(hand.title, failed)
        if not entering or not failed.kind:
            return error
        named = type(error)(f"{hand.title}: {failed.text}")
        named.__cause__ = error.__cause__
        return named

    def _gone(self, hand: _Hand) -> None:
        """Hand the tasks of a worker that is gone out again; give up when one task has had too many."""
        for future in hand.tasks.values():
            future.cancel()
        tasks = [task for task in hand.tasks if task is not _ENTERING]
        self._again = [*tasks, *self._again]
        if hand.leaves:
            return
        first, held = tasks[0] if tasks else None, self.cluster.held_too_much(hand.member)
        self.died += 1
        if first is not None:
            self._deaths[first] += 1
        elif not hand.ready:
            self._early += 1
        if max(self._deaths[first] if first is not None else 0, self._early) >= DEATHS:
            raise WorkerDied(self._obituary(hand, first, held))
        why = "the worker process ended" if held is None else f"was ended because it held {self._too_much(held)}"
        self._say(f"{hand.title}: {why}; its work goes to another one")

    def _too_much(self, held: float) -> str:
        limit = self.cluster.memory
        return f"{held / 1e9:.2g} GB, more than the {limit / 1e9:.2g} GB that it may" if limit else f"{held / 1e9:.2g} GB, more than its --memory-limit"

    def _obituary(self, hand: _Hand, task: Any, held: float | None) -> str:
        doing = "began" if task is None else self._doing(task)
        said = self.cluster.last_words(hand.member)
        if held is not None:
            remedy = "Take fewer workers, which may hold more each, or more memory: -s threads=1, -s memory=…" if self.cluster.memory else "Raise it."
            hint = f"The last one held {self._too_much(held)}. {remedy}"
        elif said:
            hint = f"It said last: {said}"
        else:
            hint = "A process that holds too much memory is ended (lower memory: or batch_size:, or use fewer workers)."
        return f"{hand.title}: {DEATHS} worker processes in a row ended while they {doing}; what is done stays, the same command goes on.\n{hint}"


class _Entering:
    """Stands for the task of beginning."""

    def __repr__(self) -> str:
        return "begin"


_ENTERING = _Entering()


@dataclass(frozen=True)
class _Taken:
    """The worker no longer has what the task needs."""


@dataclass(frozen=True)
class _Left:
    """The worker leaves, and has not begun the task."""


# ------------------------------------------------------------------------------------------- in a worker


def _enter(*given: Any) -> tuple[Any, bool]:
    """Begin in a worker, see :func:`enter`; and say whether it was asked to end."""
    from codi_engine.core.spreading.draining import drain

    with (leaving := drain()).work() as begins:
        value = enter(*given) if begins else _Left()
    return value, leaving.leaves


def _do(token: str, task: Any) -> tuple[Any, bool]:
    """Compute a task in a worker; and say whether it was asked to end."""
    from codi_engine.core.spreading.draining import drain

    with (leaving := drain()).work() as begins:
        value = _computed(token, task) if begins else _Left()
    return value, leaving.leaves


def _computed(token: str, task: Any) -> Any:
    try:
        try:
            thing = held(token)
        except LookupError:
            return _Taken()
        return thing.do(tuple(task) if isinstance(task, list) else task)  # JSON has no tuples
    except Leaves:
        return _Left()
    except Exception as error:  # whatever it is, the process that gave the task tells the user
        return Failed.of(error)
