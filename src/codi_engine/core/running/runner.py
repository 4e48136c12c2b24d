"""Running an experiment: plan, open the run, load the model, then unit after unit until everything is committed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.planning.plan import PromptRef, build_plan
from codi_engine.core.planning.preparing import Prepared
from codi_engine.core.progress import Progress
from codi_engine.core.returned import loaded_model
from codi_engine.core.rollout.devices import held
from codi_engine.core.running.computing import Made, in_order
from codi_engine.core.running.finite import check_policy
from codi_engine.core.running.fitting import check_interventions, check_length, check_positions
from codi_engine.core.running.generations import Unit, counted, units_of
from codi_engine.core.running.inputs import DATA, MODEL, compare, model_digests, other_digests, pooled, recorded
from codi_engine.core.running.marks import committable, in_words
from codi_engine.core.running.origins import CODE, code_of, compare_code, git_commit, versions
from codi_engine.core.running.reuse import KEY as REUSED
from codi_engine.core.running.reuse import Borrowed, Mine, opened
from codi_engine.core.running.shares import beside, shards_alive
from codi_engine.core.running.stopping import Stopping
from codi_engine.core.watching.disk import DiskWatch, Room
from codi_engine.core.watching.lifecycle import Lifecycle
from codi_engine.core.watching.recording import KEY, Recorder, gone_back, now
from codi_engine.core.watching.tally import Tally, columns_of_unit, tally_of
from codi_engine.store.outbox import Outbox
from codi_engine.store.state import hashable

if TYPE_CHECKING:
    from codi_engine.core.model import ModelAdapter
    from codi_engine.core.planning.machine import Preparing
    from codi_engine.core.running.computing import Hands
    from codi_engine.core.running.job import Job
    from codi_engine.core.spreading.cluster import Spread
    from codi_engine.store.outbox import Receipt
    from codi_engine.store.view import RunView
    from codi_engine.store.writer import RunWriter


#: what the bits of a run's units depend on, in its provenance: one entry for each kind of them, the latest last
ARITHMETIC = "arithmetic"


class Runner:
    """Carries one experiment from plan to committed run."""

    def __init__(
        self,
        prepared: Prepared,
        path: Path,
        progress: Progress,
        begun: Preparing | None = None,
        stopping: Stopping | None = None,
        spread: Spread | None = None,
    ) -> None:
        self.spread = spread  # the cluster that computes its units
        self.prepared, self.path, self.progress = prepared, path, progress
        self.stopping = stopping or Stopping(progress.note)
        self.experiment, self.plan = prepared.experiment, prepared.plan
        self.new_cells = 0  # computed by this call
        self._units, self._conditions = list[Unit](), list[str]()  # of the whole run
        self._committed: Collection[int] = ()
        self._borrowed = Borrowed(None, {})  # rows that other runs gave
        self._turn = 1  # of the unit that is computed, and then committed
        self.saes: dict[str, str] = {}
        self.inputs: dict[str, str] = {}  # name → digest of what units are computed from
        self.facts: dict[str, Any] = {}  # of the loaded model, for the provenance
        self.code = code_of(prepared)
        self._waiting: Mapping[int, Receipt] = {}  # in the outbox
        self.life = Lifecycle(prepared.plugins, prepared.trackers, path, progress.note)
        self.cost = Recorder(self.plan.info.device, begun, self.experiment.price)
        keep = self.experiment.keep_free
        self.room = Room(path, None if keep is None else keep * 1e9)

    # ------------------------------------------------------------------------------------------ preparing

    def load(self) -> tuple[ModelAdapter, Any]:
        """Load the model, take it apart and self-test it."""
        from codi_engine.core.rollout.network import Network
        from codi_engine.core.rollout.selftest import arithmetic, self_test

        self.progress.start("loading the model", 0, "")
        adapter = loaded_model(self.prepared.model)
        net = Network(adapter)
        result = self_test(net)
        self.progress.finish()
        if not result.deterministic:
            self.life.warn(
                "the same batch gives other bits each time on this device: results agree to rounding, not bit for bit; "
                "CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment before the command can mend it"
            )
        elif not result.reproducible:
            self.life.warn("rows' bits depend on the batch on this device: results agree to rounding, not bit for bit")
        self.reproducible, self.bits = result.reproducible, result.bits
        self.arithmetic = arithmetic(net, result.bits)
        return adapter, net

    def job(self, adapter: ModelAdapter, net: Any, writer: RunWriter | RunView) -> Job:
        """Put together what all units share."""
        from codi_engine.core.planning.needs import source_arrays
        from codi_engine.core.rollout.memory import available_bytes, prefill_bytes
        from codi_engine.core.rollout.rollout import Rollout
        from codi_engine.core.running.captures import parse_captures
        from codi_engine.core.running.codes import resolve_codes
        from codi_engine.core.running.job import Job
        from codi_engine.core.running.reading import Answers, Needs
        from codi_engine.core.saestore import SaeStore

        experiment, plugins, data = self.experiment, self.prepared.plugins, self.plan.data
        natural = self.plan.natural
        self.plan = build_plan(experiment, plugins, data, adapter.info, net.components, lambda text: len(adapter.encode_prompt(text)), natural)
        prompts = {p.key: p for p in self.plan.prompts}
        chat = bool(experiment.data.model_dump().get("chat_template"))
        ids = {key: tuple(self._encode(adapter, p, chat)) for key, p in prompts.items()}
        answers = Answers(adapter, experiment.generate.answer_prefix)
        needs = Needs.of(self.prepared.metrics, data.kind != "prompts")
        check_length(adapter.info, ids, prompts, len(adapter.answer_start) + max(experiment.generate.max_new_tokens, len(answers.prefix) + 8))
        check_positions(self.plan.conditions, ids, prompts, experiment.source)
        lengths = [len(i) for i in ids.values()]
        captures = parse_captures(experiment.site_captures, adapter.info, net.components, max(lengths), experiment.source)
        saes = SaeStore(plugins, net.device)
        codes = resolve_codes(experiment.code_captures, adapter.info, saes, experiment.source)
        check_interventions(self.plan, plugins, saes, experiment.source)
        arrays = source_arrays(self.plan, plugins, lengths, len(adapter.answer_start) + len(answers.prefix))
        rollout = Rollout(net, prefill_bytes(available_bytes(net), experiment.memory))
        return Job(
            experiment, plugins, self.plan, net, rollout, answers, self.prepared.metrics, self.prepared.column, needs,
            captures, arrays, writer, self.life.warn, prompts, ids, {c.key: c for c in self.plan.cells}, codes, saes,
        )  # fmt: skip

    def same_job(self, adapter: ModelAdapter, net: Any, writer: RunWriter) -> Job:
        """As :meth:`job`, after comparing model, data and every other input with what the run was computed with so far."""
        self.compare(writer, {MODEL: adapter.digest, DATA: self.plan.data.digest, **model_digests(self.prepared.model)})
        job = self.job(adapter, net, writer)
        self.compare(writer, self.digests(job))
        return job

    def _encode(self, adapter: ModelAdapter, prompt: PromptRef, chat: bool) -> list[int]:
        text = prompt.text
        if chat:
            template = getattr(adapter, "chat", None)
            if template is None:
                raise UserError(f"{self.experiment.source}: data.chat_template: this model's tokenizer has no chat template")
            text = template(text)
        ids = adapter.encode_prompt(text)
        if not ids:
            raise UserError(f"data: example {prompt.example}: the prompt has no tokens")
        return ids

    # ------------------------------------------------------------------------------------------- planning

    def add_generation(self, job: Job) -> list[Unit]:
        """Record what this plan adds to the run, and return all units of the run."""
        from codi_engine.core.running.growing import grow

        grow(job, self.plan, self.inputs)
        return self.known_units(job)

    def known_units(self, job: Job) -> list[Unit]:
        """Return all units of the run, and let the job name cells as the run does."""
        labels = {name.removeprefix("cells/"): labels for name, labels in job.writer.labels.items() if name.startswith("cells/")}
        job.codes = {name: {hashable(v): i for i, v in enumerate(values)} for name, values in labels.items()}
        return units_of(job.writer.plans)

    # -------------------------------------------------------------------------------------------- running

    def run(self, open_writer: Callable[[], RunWriter], gate: bool = True) -> None:
        """Compute and commit every unit of the plan that is not committed yet; those that wait in the outbox are taken as they are."""
        with open_writer() as writer:
            self.count(writer)
            todo, hands = self._begin(writer)
            unedited = [u for u in todo if u.stage != "sweep"]
            sweep = [u for u in todo if u.stage == "sweep"]
            with hands:
                writer.set_provenance(self.provenance(writer))
                self.life.started()
                self.life.look()
                self.cost.begin("baseline")
                self._stage("baseline", "prompts", unedited, hands, writer)
                if sweep:
                    self.cost.begin("sweep")
                    if gate and any(u.number not in self._waiting for u in sweep):
                        self.run_gate(hands)
                    self._stage("sweep", "cells", sweep, hands, writer)
                self.cost.end()
            self.stamp(writer)

    def stamp(self, writer: RunWriter) -> None:
        """Record that every unit is committed."""
        if said := in_words(writer.committed):
            self.life.warn(said)
        writer.set_provenance({**self.provenance(writer), "finished": now()})

    def run_gate(self, hands: Hands) -> None:
        """Check every condition on a few examples; the unedited units are committed."""
        self.progress.start("gate: does every edit fire where it should?", 0, "")
        self.facts["gate"] = hands.gate()

    def _stage(self, stage: str, what: str, units: Sequence[Unit], hands: Hands, writer: RunWriter) -> None:
        """Compute and commit the units of a stage."""
        self.progress.start(stage, sum(len(u.keys) * u.trials for u in units), what)
        self.progress.at(f"unit 1 of {len(units)}")
        if units:
            self.room.check(len(self._committed), len(self._units))
        self._turn = len(self._committed) + 1
        with self.stopping.units(lambda: f"unit {self._turn:,} of {len(self._units):,}"):
            for number, made in enumerate(in_order(units, self._waiting, hands), 1):
                self.commit(writer, made)
                if made.receipt is not None and made.unit.number not in self._waiting:  # computed now, by a cluster's worker
                    self.computed(made.unit, made.receipt.files)
                self.progress.at(f"unit {min(number + 1, len(units))} of {len(units)}")
                self.stopping.check()
                self._turn += 1
                if number < len(units):
                    self.room.check(len(self._committed), len(self._units))
        self.progress.finish()

    def count(self, writer: RunWriter) -> None:
        """See how far the run on disk is, and whether it can go on and has room to, before the model is loaded."""
        check_policy(writer.committed, self.experiment.nonfinite, self.path)
        self._units, self._committed = units_of(writer.plans), writer.committed
        for record in writer.committed.values():
            self.room.wrote(record["files"])
        if len(self._committed) < len(self._units):
            self.room.check(len(self._committed), len(self._units))

    def kept(self) -> str:
        """Say what is committed of the run, and what waits to be; empty before it is planned."""
        waiting = Outbox(self.path).receipts().keys() - set(self._committed) if self._units else ()
        more = f", {len(waiting):,} more wait in its outbox" if waiting else ""
        return f"{counted(self._units, self._committed)} are committed in {self.path}{more}" if self._units else ""

    def _begin(self, writer: RunWriter) -> tuple[list[Unit], Hands]:
        """Load, plan, and return the units to commit and who computes them."""
        adapter, net = self.load()
        job = self.same_job(adapter, net, writer)
        units = self.planned(adapter, job, writer)
        todo = [u for u in self.wanted(units) if u.number not in writer.committed]
        with Outbox(self.path) as outbox:
            self._waiting = outbox.receipts()
        for said in outbox.refused.values():
            self.life.warn(said)
        if alive := shards_alive(self.path):
            self.life.warn(f"{self.path}: is also being computed by {beside(alive)}")
        due = [u for u in todo if u.number not in self._waiting]
        self.complete(job, due)
        self.expect(due)
        self.tell_plan(units, writer.labels, tally_of(self.path, units, writer.committed))
        if said := self._borrowed.in_words(due):
            self.life.warn(said, "note")
        return todo, self.hands(job, units, due)

    def planned(self, adapter: ModelAdapter, job: Job, writer: RunWriter, others: str = "") -> list[Unit]:
        """Plan, record what the run is computed with, and return all units of the run; ``others`` compute it at the same time."""
        compare_code(writer, self.code, self.path, self.life.warn, others)
        self.saes = {**dict(writer.provenance.get("saes", {})), **self.saes}
        self._compare_bits(writer)
        for said in self.reuse(job, self.inputs):
            self.life.warn(said)
        units = self.add_generation(job)
        self.facts |= {
            "model_digest": adapter.digest, "model": list(adapter.report), "layers": adapter.info.layers, "latents": adapter.info.latents,
            "device": adapter.info.device, "saes": self.saes,
        }  # fmt: skip
        self._borrowed = Borrowed(job.reuse, writer.provenance.get(REUSED) or {})
        writer.set_provenance(self.provenance(writer))
        return units

    def reuse(self, job: Job, inputs: Mapping[str, str]) -> list[str]:
        """Let the job take unedited rows from the runs that ``reuse`` names; return why some of them do not fit."""
        if not self.experiment.reuse:
            return []
        if not self.reproducible:
            return ["reuse: nothing is taken from other runs, because rows' bits depend on the batch on this device"]
        job.reuse, said = opened(job, self.path, Mine(inputs, self.arithmetic, versions()))
        return said

    def wanted(self, units: Sequence[Unit]) -> list[Unit]:
        """Return those units of a run that this plan has cells or prompts in; an earlier, larger plan may have more."""
        mine = {c.key for c in self.plan.cells} | {p.key for p in self.plan.prompts}
        return [u for u in units if not mine.isdisjoint(u.keys)]

    def expect(self, due: Sequence[Unit]) -> None:
        """Take in what this call is to compute: the record of costs is told how much of the whole plan's estimate that is."""
        from codi_engine.core.planning.estimate import estimate

        self.new_cells = sum(len(u.keys) * u.trials for u in due if u.stage != "sources")
        new = {name: sum(len(u.keys) * u.trials for u in due if (u.stage == "sweep") == (name == "sweep")) for name in ("baseline", "sweep")}
        whole = {"baseline": sum(1 if p.pool else self.plan.trials for p in self.plan.prompts), "sweep": len(self.plan.cells)}
        self.cost.expect(estimate(self.prepared, self.cost.prepared_in, self.cost.slowed), {name: (min(new[name], whole[name]), whole[name]) for name in whole})

    def tell_plan(self, units: Sequence[Unit], labels: Mapping[str, Sequence[Any]], tally: Tally) -> None:
        """Tell observers what the run is and how far; units of earlier plans and invocations count."""
        self._units, self._conditions = list(units), list(labels.get("cells/condition", []))
        self.life.planned(self.experiment.to_dict(), len(self.plan.cells), len(units), tally)
        self.life.disk = DiskWatch(self.path, lambda: self.cost.disk_left)
        for note in self.plan.notes:  # the user reads them at the end
            self.life.warned(note, "note")

    def caught_up(self, committed: Collection[int]) -> None:
        """Count what others have committed meanwhile."""
        self._committed = committed
        self.life.caught_up(sum(len(u.keys) * u.trials for u in self._units if u.number in committed and u.stage != "sources"), len(committed))

    def hands(self, job: Job, units: Sequence[Unit], todo: Sequence[Unit]) -> Hands:
        """Return workers where there is a cluster, or several devices and something for each of two; this process' own model otherwise."""
        from codi_engine.core.running.clustered import Clustered
        from codi_engine.core.running.computing import Computer, Here
        from codi_engine.core.running.workers import Workers

        sweep = sum(u.stage == "sweep" for u in todo)
        most = max(sweep, len(todo) - sweep)
        if not most or (self.spread is None and min(len(self.prepared.devices), most) < 2):
            computer = Computer(job, units)
            self.cost.rows = lambda: computer.forwarded
            return Here(computer, self.reproducible)
        self.facts["devices"] = self.prepared.devices
        self.plan = self.prepared.plan  # this process computes nothing more; the other plan asks the adapter, and would keep its weights
        devices = self.prepared.devices[:most]
        workers = Workers(self, devices) if self.spread is None else Clustered(self, self.spread, devices)
        self.cost.rows, self.cost.peak, self.cost.devices = lambda: workers.forwarded, workers.peak, held(workers.devices)
        return workers

    def complete(self, job: Job, todo: Sequence[Unit]) -> None:
        """A unit left over from a larger plan needs that plan's cells: ask for the larger plan instead of guessing."""
        lost = [u for u in todo if any(k not in (job.cells if u.stage == "sweep" else job.prompts) for k in u.keys)]
        if lost:
            raise UserError(
                f"{self.path}: an earlier, larger plan of this run is unfinished (unit {lost[0].number}).\n"
                "Repeat its command first; the smaller plan is contained in it."
            )

    def commit(self, writer: RunWriter, made: Made) -> None:
        """Commit what a unit gave, or take it in where it waits in the outbox, and tell those who look on."""
        unit, arrays = made.unit, made.arrays
        if made.receipt is None:
            writer.commit(unit.number, unit.stage, committable(unit, arrays, made.texts))
            self.computed(unit, writer.committed[unit.number]["files"])
        else:
            writer.adopt(made.receipt)
            arrays = columns_of_unit(writer, unit.number)
        self._borrowed.committed(unit, writer)
        self.cost.write(writer)
        self.life.committed(unit.number, len(self._units), len(unit.keys) * unit.trials, arrays, self._conditions, unit.stage)

    def computed(self, unit: Unit, files: Mapping[str, Any]) -> None:
        """Count what this process has computed and written."""
        self.room.wrote(files)
        self.cost.committed(len(unit.keys) * unit.trials, sum(int(f["size"]) for f in files.values()))
        self.progress.advance(len(unit.keys) * unit.trials)

    def _compare_bits(self, writer: RunWriter) -> None:
        """Say, before anything is computed, that committed units have other bits than those to come, and that the clock went back."""
        from codi_engine.core.rollout.selftest import other_bits

        before = list(writer.provenance.get(ARITHMETIC) or []) if writer.committed else []
        if said := other_bits(before, self.arithmetic):
            self.life.warn(said)
        self.facts[ARITHMETIC] = [*(one for one in before if one.get("bits") != self.arithmetic["bits"]), self.arithmetic]
        if said := gone_back(writer.provenance):
            self.life.warn(said)

    def compare(self, writer: RunWriter, more: Mapping[str, str]) -> None:
        """Take in digests of inputs and refuse to go on with a run that was computed with others."""
        self.inputs = {**self.inputs, **more}
        compare(recorded(writer.plans, writer.provenance), self.inputs, self.path, pooled(self.plan, self.prepared.plugins))

    def digests(self, job: Job) -> dict[str, str]:
        """Return the digests of autoencoders, and of files and runs that options name; the interventions have looked at them."""
        assert job.saes is not None
        self.saes = job.saes.digests()
        return other_digests(self.experiment, self.prepared.plugins, self.plan.conditions, job.saes)

    def provenance(self, writer: RunWriter) -> dict[str, Any]:
        import torch

        kept = {k: writer.provenance[k] for k in ("gate", REUSED) if k in writer.provenance}  # of an earlier call, unless this one runs it again
        return {
            "versions": versions(), CODE: self.code, **kept, **self.facts, "data_digest": self.plan.data.digest, "data": list(self.plan.data.report),
            "threads": torch.get_num_threads(), "seed": self.experiment.seed, "git": git_commit(),
            "reproducible_bits": self.reproducible and len(self.facts.get(ARITHMETIC, ())) < 2, "started": writer.provenance.get("started", now()),
            KEY: self.cost.into(writer.provenance)[KEY],
        }  # fmt: skip
