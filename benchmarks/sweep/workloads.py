"""The three workloads put together: who takes part, what is compared first, which floor they are set against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import floors, latent, patching, peers, sampled
from .comparing import Timed, agreement, table, timed
from .generating import Generating
from .models import Models
from .sampled import TOKENS
from .timing import Contender, Pass

OURS = "codi-engine"
PLAIN = "codi-engine, no edit, no capture"
BATCHED = "plain hooks, all examples in a batch"
TRIAL = "generate, one trial at a time"

#: sizes of the tests; None: as the workload has them
TINY: dict[str, dict[str, Any]] = {
    "A": {"pairs": 2},
    "B": {"problems": 2, "donors": 2, "new": 3},
    "C": {"trials": 3, "conditions": 2, "new": 5, "features": 128, "captured": 16},
}


class Workload:
    """One workload on one model.

    Parameters
    ----------
    every: slow contenders run every n-th setting (one at a time: fewer)
    """

    letter = ""
    #: contenders whose time is divided by each one's
    against: tuple[str, ...] = ()

    def __init__(self, models: Models, every: int) -> None:
        self.models, self.every = models, every

    def contenders(self) -> list[tuple[str, Callable[[], Contender]]]:
        """Return name and how to make it, of all that can run here: nothing is built before it is wanted."""
        raise NotImplementedError

    def check(self, passes: Mapping[str, Pass]) -> None:
        """Compare what contenders computed, each over its own cells, and say it.

        Raises
        ------
        SystemExit: two differ
        """
        found = agreement(passes)
        tokens = "" if found.tokens is None else f", equal tokens {found.tokens:.0%}"
        print(f"\n{self.letter}: {self.cells} cells; max |Δlogit| {found.worst:.1e}{tokens} over {found.cells} cells", flush=True)

    @property
    def cells(self) -> int:
        raise NotImplementedError

    def floors(self, result: Timed) -> dict[str, float]:
        """Return name → FLOPs."""
        raise NotImplementedError

    def chosen(self, wanted: Callable[[str], bool]) -> list[Contender]:
        """Make the contenders that are wanted."""
        return [make() for name, make in self.contenders() if wanted(name)]

    def compare(self, repeats: int, wanted: Callable[[str], bool], checked: bool = False) -> dict[str, Any]:
        """Check unless that is done, time, print; returns what was printed."""
        chosen = self.chosen(wanted)
        result = timed(self.models, chosen, repeats, (lambda _: None) if checked else self.check)
        flops = self.floors(result)
        rows = table(chosen, result, flops, self.against, self.cells)
        said = {"floors": flops, "rates": result.rates, "rows": rows, **self.more(result)}
        rates = ", ".join(f"{value / 1e9:.1f} GFLOP/s {way}" for way, value in result.rates.items())
        print(f"   matrix rates {rates}: shares are of the larger; " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP" for name, value in flops.items()))
        return said

    def more(self, result: Timed) -> dict[str, Any]:
        """Print and return what else there is to say."""
        return {}


class A(Workload):
    letter = "A"
    against = ("one at a time, all logits (originals)", BATCHED)

    def __init__(self, models: Models, every: int, mixed: bool = False, **sizes: Any) -> None:
        super().__init__(models, every)
        self.work = patching.Patching(models, mixed=mixed, **sizes)
        self.hooks = patching.Hooks(self.work)

    @property
    def cells(self) -> int:
        return len(self.work.cells)

    def contenders(self) -> list[tuple[str, Callable[[], Contender]]]:
        hooks, every, pairs = self.hooks, self.every, self.work.pairs
        first, second, many = self.against[0], "one at a time, last logits", f"plain hooks, {patching.ROWS} cells in a batch"
        found: list[tuple[str, Callable[[], Contender]]] = [
            (first, lambda: Contender(first, lambda n: hooks.run(n, 1, last_logits=0), every * pairs)),
            (second, lambda: Contender(second, lambda n: hooks.run(n, 1), every * pairs)),
            (BATCHED, lambda: Contender(BATCHED, lambda n: hooks.run(n, pairs), every)),
            (many, lambda: Contender(many, lambda n: hooks.run(n, patching.ROWS), max(every * pairs // patching.ROWS, 4))),
        ]
        missing = peers.absent()
        for name, (library, make) in peers.every_way(self.work).items():
            if library not in missing:
                found.append((name, lambda name=name, make=make: Contender(name, make().run, every)))  # type: ignore[misc]
        return [*found, (OURS, lambda: Contender(OURS, patching.Engine(self.work).run, ours=True))]

    def floors(self, result: Timed) -> dict[str, float]:
        shape, work = self.models.shape, self.work
        return {
            "of the floor": floors.patching(shape, work.lengths, work.cells),
            "of the lowered floor": floors.patching(shape, work.lengths, work.cells, lowered=True),
        }


class B(Workload):
    letter = "B"
    against = ("one at a time, all logits (originals)", BATCHED)

    def __init__(self, models: Models, every: int, mixed: bool = False, **sizes: Any) -> None:
        super().__init__(models, every)
        self.work = latent.Latent(models, mixed=mixed, **sizes)
        self.plain = latent.Plain(self.work)

    @property
    def cells(self) -> int:
        return len(self.work.cells)

    def contenders(self) -> list[tuple[str, Callable[[], Contender]]]:
        plain, every, problems = self.plain, self.every, len(self.work.prompts)
        first, second, many = self.against[0], "one at a time, last logits", f"plain hooks, {latent.ROWS} cells in a batch"
        return [
            (first, lambda: Contender(first, lambda n: plain.run(n, 1, unread=True), every * problems)),
            (second, lambda: Contender(second, lambda n: plain.run(n, 1), every * problems)),
            (BATCHED, lambda: Contender(BATCHED, lambda n: plain.run(n, problems), every)),
            (many, lambda: Contender(many, lambda n: plain.run(n, latent.ROWS), max(every * problems // latent.ROWS, 3))),
            (OURS, lambda: Contender(OURS, latent.Engine(self.work).run, ours=True)),
        ]

    def floors(self, result: Timed) -> dict[str, float]:
        work = self.work
        return {"of the floor": floors.latents(self.models.shape, [len(p) for p in work.prompts], work.cells, work.new)}


class C(Workload):
    letter = "C"
    against = (f"{TRIAL}, vectorised hook", "generate, all rows in one batch, one seed")

    def __init__(self, models: Models, every: int, mixed: bool = False, **sizes: Any) -> None:
        super().__init__(models, every)
        self.work = sampled.Sampled(models, **sizes)
        self.plain, self.engine = Generating(self.work), sampled.Engine(self.work)

    @property
    def cells(self) -> int:
        return len(self.work.cells)

    def contenders(self) -> list[tuple[str, Callable[[], Contender]]]:
        plain, engine = self.plain, self.engine
        single = min(self.every * 6, self.cells)
        made = [
            Contender(f"{TRIAL}, .item() per code (originals)", lambda n: plain.one_at_a_time(n, items=True), single),
            Contender(self.against[0], plain.one_at_a_time, single),
            Contender(self.against[1], plain.batched, note="texts depend on the batch"),
            Contender("generate, one batch, no edit, no capture", lambda n: plain.batched(n, bare=True)),
            Contender(PLAIN, lambda n: engine.run(n, edit=False, capture=False)),
            Contender(OURS, engine.run, ours=True),
        ]
        return [(one.name, lambda one=one: one) for one in made]  # type: ignore[misc]

    def check(self, passes: Mapping[str, Pass]) -> None:
        """Greedy texts and codes against ``generate``'s; sampled ones against a loop that draws with the same uniforms."""
        each, plain = self.work.trials, self.plain
        ours = self.engine.run(each, greedy=True)
        if len({tuple(tokens) for tokens in ours.tokens.values()}) < 2 or not any(codes.any() for codes in ours.kept.values()):
            raise SystemExit("the edit changes no text or no code is active: nothing would be compared")
        singly = {
            OURS: ours,
            "one at a time": plain.one_at_a_time(each * 2, greedy=True),
            "one at a time, .item()": plain.one_at_a_time(each * 2, items=True, greedy=True),
            "batched": plain.batched(each, greedy=True),
        }
        greedy = agreement(singly)
        drawn, loop = passes.get(OURS) or self.engine.run(), Pass()
        for cell in self.work.cells[:: max(2 * self.cells // 5, 1)]:
            one = plain.with_uniforms(cell, self.engine.key(cell), drawn.tokens[cell])
            loop.kept.update(one.kept)
            loop.tokens.update(one.tokens)
        uniforms = agreement({OURS: drawn, "a loop with the same uniforms": loop})
        print(f"\nC: {self.cells} cells; greedy: equal tokens {greedy.tokens:.0%}, max |Δcode| {greedy.worst:.1e} over {greedy.cells} cells")
        print(
            f"   sampled with the same uniforms: equal tokens {uniforms.tokens:.0%}, max |Δcode| {uniforms.worst:.1e} over {uniforms.cells} cells", flush=True
        )

    def floors(self, result: Timed) -> dict[str, float]:
        """Return the floor of the texts that were sampled: beginnings that they share are counted once."""
        done, work = result.passes.get(OURS), self.work
        if done is None:
            return {}
        texts = [(c, done.tokens[c, t]) for c, t in work.cells]
        return {"of the floor": floors.sampled(self.models.shape, TOKENS, work.layer, texts, sum(map(len, work.chosen.values())))}

    def more(self, result: Timed) -> dict[str, Any]:
        if PLAIN not in result.spent or OURS not in result.spent:
            return {}
        plain, ours = result.spent[PLAIN].judged, result.spent[OURS].judged
        share = floors.plain(self.models.shape, TOKENS, list(result.passes[PLAIN].tokens.values())) / result.rate / plain
        print(f"   edit and capture / plain, both codi-engine: {ours / plain:.3f}; plain is at {share:.0%} of its own floor")
        return {"edit and capture / plain": ours / plain, "plain, share of its floor": share}


WORKLOADS: dict[str, type[A] | type[B] | type[C]] = {"A": A, "B": B, "C": C}
