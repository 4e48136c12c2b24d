"""``codi-engine merge``: what waits in a run's outbox is taken in, and so are the units of other directories of the same run.

Shards on machines without a common disk write a directory each. Their plans are the same, so that a unit of one is a unit of
all. Each is copied into the run's outbox, byte for byte as its own ledger says, and adopted in the order of units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.running.generations import counted, units_of
from codi_engine.core.running.inputs import MODEL, MODEL_FILE, in_words, recorded
from codi_engine.core.running.origins import CODE, other_code
from codi_engine.core.running.shares import shards_alive
from codi_engine.core.runs.places import refuse_remote
from codi_engine.core.runs.stored import CHECKS, stored_results
from codi_engine.core.watching.recording import KEY, invocations_of
from codi_engine.core.watching.status import command
from codi_engine.core.yamlfile import parse_yaml
from codi_engine.store.contained import check_contained
from codi_engine.store.layout import EXPERIMENT, LEDGER, waiting_folder
from codi_engine.store.ledger import read_ledger
from codi_engine.store.outbox import Outbox, Receipt
from codi_engine.store.provenance import read_provenance
from codi_engine.store.state import State, differences
from codi_engine.store.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable

#: what the bits of units depend on, in a run's provenance
_ARITHMETIC = "arithmetic"


@dataclass
class Merged:
    """What became of a run.

    Attributes
    ----------
    taken: how many units were taken in; those of before are not counted
    copied: directory → how many units were copied from it
    waiting: units that wait in the outbox for others that come before them
    missing: units that nobody has computed
    committed: how far the run is, in words
    analyses: of its experiment (``checks`` too) that have no results of what is committed now
    next: the command that goes on with it; empty where nothing is left to do
    """

    path: Path
    taken: int = 0
    copied: dict[Path, int] = field(default_factory=dict)
    waiting: int = 0
    missing: int = 0
    committed: str = ""
    analyses: Sequence[str] = ()
    next: str = ""


@dataclass(frozen=True)
class _Source:
    """A run as its ledger, its provenance and its outbox describe it."""

    path: Path
    state: State
    provenance: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Source:
        check_contained(path)
        records = read_ledger(path / LEDGER).records if path.is_dir() else []
        state = State.of(records, str(path)) if records else None
        if state is None or not state.plans:
            raise UserError(f"{path}: {'holds no run with a plan' if path.is_dir() else 'no such directory'}")
        return cls(path, state, read_provenance(path))


def merge_runs(path: str | Path, others: Sequence[str | Path] = (), note: Callable[[str], None] = lambda _: None) -> Merged:
    """Take what waits in a run's outbox into it, and the units of other directories of the same run.

    Parameters
    ----------
    others: directories that ``codi-engine run FILE --shard i/n --output DIR`` wrote; they are only read
    note: told of what is refused

    Raises
    ------
    UserError: no run, a run of another experiment, plan, model, data or arithmetic, or one that is being computed
    StoreError: the run is being written, or is damaged; what was taken in stays
    """
    for given in (path, *others):
        refuse_remote(given, "what shards leave in the outbox of a run")
    run = _Source.read(Path(path))
    if alive := shards_alive(run.path):
        name, owner = next(iter(alive.items()))
        raise UserError(f"{run.path}: shard {name} ({owner}) computes it and takes in what waits; merge it when no process is left")
    sources = [_Source.read(Path(other)) for other in others]
    for other in sources:
        if other.path.resolve() == run.path.resolve():
            raise UserError(f"{other.path}: is the run itself; name the other directories after it")
        _same(run, other)
    done = Merged(run.path)
    with _opened(run) as writer, Outbox(run.path) as outbox:
        for other in sources:
            done.copied[other.path] = _copy(writer, outbox, other)
        _adopt(writer, outbox, done)
        for said in outbox.refused.values():
            note(said)
        if any(done.copied.values()):
            writer.set_provenance(_with_costs(writer.provenance, sources))
        units = units_of(writer.plans)
        done.missing = sum(u.number not in writer.committed for u in units) - done.waiting
        done.committed = counted(units, writer.committed)
    done.analyses = _wanting(run)
    if done.missing or done.analyses:
        done.next = command(run.path)
    return done


def _wanting(run: _Source) -> list[str]:
    """Return the analyses of a run's experiment, and its checks, whose results are not there, or of fewer units."""
    digest = read_ledger(run.path / LEDGER).chain
    there = {name for name, result in stored_results(run.path).items() if result.is_of(digest)}
    value, _ = parse_yaml(run.state.experiment, EXPERIMENT)
    named = value.get("analyses") or []
    wanted = [str(one["plugin"] if isinstance(one, dict) else one).rsplit("/", 1)[-1] for one in named]
    return [name for name in [*wanted, *([CHECKS] if value.get("checks") else [])] if name not in there]


def _opened(run: _Source) -> RunWriter:
    """Open the run as what it is."""
    state = run.state
    return RunWriter.open(run.path, identity=state.identity, unit_cells=state.unit_cells, experiment=state.experiment, provenance={})


def _copy(writer: RunWriter, outbox: Outbox, other: _Source) -> int:
    """Copy the units of another directory that the run lacks into its outbox; return how many."""
    with Outbox(other.path) as there:
        waiting = there.receipts()
    have = outbox.receipts().keys() | writer.committed.keys()
    copied = 0
    for unit in range(other.state.units):
        record = other.state.committed.get(unit)
        if unit in have or (record is None and unit not in waiting):
            continue
        if record is None:
            outbox.take_over(waiting[unit], other.path, other.path / waiting_folder(unit))
        else:
            files = {name: dict(stated) for name, stated in record["files"].items()}
            receipt = Receipt(unit, record["stage"], record["rows"], files, record.get("note"), other.state.chain_of(unit))
            outbox.take_over(receipt, other.path, other.path)
        copied += 1
    return copied


def _adopt(writer: RunWriter, outbox: Outbox, done: Merged) -> None:
    """Take in what waits, in the order of units, as far as none is missing."""
    waiting = outbox.receipts()
    for unit in units_of(writer.plans):
        if unit.number in writer.committed:
            continue
        if unit.number not in waiting:
            break
        done.taken += writer.adopt(waiting.pop(unit.number))
    done.waiting = len(waiting)


# ------------------------------------------------------------------------------------------------------------- comparing


def _same(run: _Source, other: _Source) -> None:
    """Refuse a directory of another experiment, of other inputs or another plan, or one whose units have other bits.

    Raises
    ------
    UserError: naming it and what differs
    """
    if changed := differences(run.state.identity, other.state.identity):
        raise UserError(f"{other.path}: holds another experiment than {run.path} ({'; '.join(changed[:3])}{'; …' if len(changed) > 3 else ''})")
    mine, theirs = (recorded(one.state.plans, one.provenance) for one in (run, other))
    changed = sorted((name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]), key=lambda name: (name != MODEL, name))
    for name in changed[:1]:
        files = ", ".join(n.removeprefix(MODEL_FILE) for n in changed if n.startswith(MODEL_FILE))
        said = f"sha256 {mine[name][:12]} there, {theirs[name][:12]} in {other.path}{f'; changed: {files}' if files else ''}"
        raise UserError(f"{other.path}: was computed with {in_words(name)} than {run.path} ({said})")
    if run.state.unit_cells != other.state.unit_cells or other.state.chains != run.state.chains[: len(other.state.chains)]:
        raise UserError(
            f"{other.path}: was planned otherwise than {run.path} ({_planned(other.state)}, not {_planned(run.state)}); its units are others.\n"
            "Run every shard with the same file, the same --limit and the same data."
        )
    if said := other_code(run.provenance.get(CODE) or {}, other.provenance.get(CODE) or {}):
        raise UserError(f"{other.path}: was computed with other code than {run.path}: {said}")
    _same_bits(run, other)


def _planned(state: State) -> str:
    return f"{state.units:,} units in {len(state.plans)} plan{'s' * (len(state.plans) != 1)}"


def _same_bits(run: _Source, other: _Source) -> None:
    mine, theirs = (list(one.provenance.get(_ARITHMETIC) or []) for one in (run, other))
    bits = {one.get("bits") for one in mine}
    strange = next((one for one in theirs if bits and one.get("bits") not in bits), None)
    if strange is not None:
        keys = [k for k in ("torch", "threads", "device") if mine[0].get(k) != strange.get(k)]
        why = "; ".join(f"{k} {mine[0].get(k)} there, {strange.get(k)} here" for k in keys) or "the same torch, threads and kind of device: other settings"
        raise UserError(f"{other.path}: has other bits than {run.path} ({why}): its units would agree to rounding only, and are not taken")


def _with_costs(provenance: Mapping[str, Any], sources: Sequence[_Source]) -> dict[str, Any]:
    """Add what the other directories record of their invocations: the run's cost is that of all."""
    known = invocations_of(provenance)
    for other in sources:
        ids = {one.get("id") for one in known}
        known += [one for one in invocations_of(other.provenance) if one.get("id") not in ids]
    return {**provenance, KEY: {"invocations": known}}
