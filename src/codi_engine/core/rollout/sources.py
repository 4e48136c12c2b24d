"""What edits take from the baseline stage: partners', donors' and own values, means, scales, differences of means.

The values were captured unedited and are kept in the run under ``sources/``; they are read back unit by unit through a
bounded cache, so that neither their number nor a resumed run matters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.calling import calling
from codi_engine.core.errors import GateError, UserError
from codi_engine.core.planning.conditions import templated
from codi_engine.core.sites import Phase, Site

if TYPE_CHECKING:
    from codi_engine.core.model import ModelInfo
    from codi_engine.core.plugin import Intervention
    from codi_engine.core.saestore import SaeStore

#: prompt positions are stored in blocks of so many, counted from the prompt's end
POSITIONS = 16


@dataclass(frozen=True)
class Stored:
    """One prompt of the pool: where its baseline lies, what is known of it, the example's text and the one that was run."""

    index: int
    variant: str
    fields: Mapping[str, object]
    correct: bool | None
    question: str = ""
    text: str = ""


@dataclass(frozen=True)
class Pool:
    """Over which unedited prompts a condition's means, scales and differences are taken: those of its variant, asked as it asks."""

    variant: str = "main"
    template: str | None = None


def array_name(component: str, layer: int | None, phase: Phase, place: int) -> tuple[str, int]:
    """Return the store's name for a site's baseline values at a place, and the place's index in that array."""
    site = component if layer is None else f"{component}.{layer}"
    if phase != "prompt":
        return f"sources/{site}@{phase}/value", place
    block = (-place - 1) // POSITIONS
    return f"sources/{site}@prompt[{-(block + 1) * POSITIONS}:{-block * POSITIONS or ''}]/value", POSITIONS + place + block * POSITIONS


def read_from(intervention: Intervention[Any], site: Site, place: int, info: ModelInfo) -> tuple[Site, int]:
    """Return where an intervention reads what it writes at ``site`` and ``place``.

    Raises
    ------
    GateError: it reads a layer or step that the model does not have
    """
    with calling(intervention, "source_at"):
        read, at = intervention.source_at(site, place)
    name = f"'{intervention.name}' at {site}[{place}] reads {read}[{at}]"
    if read.phase is None:
        raise GateError(f"{name}: source_at must keep the phase")
    if read.layer is not None and not 0 <= read.layer < info.layers:
        raise GateError(f"{name}: the model has layers 0 to {info.layers - 1}")
    if read.phase == "latent" and not 0 <= at < info.latents:
        raise GateError(f"{name}: the model has steps 0 to {info.latents - 1}")
    return read, at


class Sources:
    """Baseline values by prompt.

    Parameters
    ----------
    locate: (array name, prompt index) → (unit, row in unit)
    read: (array name, unit) → rows × places × width
    pool: prompts that means, scales and differences are taken over
    budget: bytes of arrays kept in memory
    lengths: tokens of each prompt; with them, prompt positions from 0 on count from the start

    ``saes`` holds the run's sparse autoencoders, ``model_digest`` says which model computed the values.
    ``broken_too``: values that are not finite are handed out, because their cells will be marked.
    """

    def __init__(
        self,
        locate: Callable[[str, int], tuple[int, int]],
        read: Callable[[str, int], np.ndarray],
        pool: Sequence[Stored] = (),
        budget: int = 1 << 29,
        lengths: Sequence[int] = (),
    ) -> None:
        self._locate, self._read, self.pool, self._budget, self._lengths = locate, read, pool, budget, lengths
        self._pools: dict[Pool, list[Stored]] = {}
        self._cache: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._size = 0
        self._statistics: dict[tuple[object, ...], np.ndarray] = {}
        self.saes: SaeStore | None = None
        self.model_digest = ""
        self.broken_too = False
        self.turn_to("latent", Pool(), None)

    def turn_to(self, phase: Phase, pool: Pool, place: int | None) -> None:
        """Say which rows are about to be edited; ``place`` as the file counts it."""
        self.phase, self.running, self.place = phase, pool, place

    def _array(self, name: str, unit: int) -> np.ndarray:
        key = (name, unit)
        if key not in self._cache:
            self._cache[key] = self._read(name, unit)
            self._size += self._cache[key].nbytes
            while self._size > self._budget and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._size -= old.nbytes
        self._cache.move_to_end(key)
        return self._cache[key]

    def values(self, component: str, layer: int | None, phase: Phase, prompts: Sequence[int], places: Sequence[int]) -> np.ndarray:
        """Return rows × width: the baseline value of each prompt at its place (one place a row)."""
        out: np.ndarray | None = None
        wanted: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
        for row, (prompt, written) in enumerate(zip(prompts, places, strict=True)):
            place = self._from_end(prompt, written) if phase == "prompt" and written >= 0 else written
            name, at = array_name(component, layer, phase, place)
            unit, slot = self._locate(name, prompt)
            wanted.setdefault((name, unit), []).append((row, slot, at))
        for (name, unit), items in wanted.items():
            array = self._array(name, unit)
            rows, slots, ats = (list(x) for x in zip(*items, strict=True))
            if out is None:
                out = np.empty((len(prompts), array.shape[-1]), array.dtype)
            out[rows] = array[slots, ats]
        assert out is not None
        absent = np.isnan(out).any(1) & (not self.broken_too or self._before(phase, prompts, places))
        if absent.any():
            bad = int(absent.argmax())
            raise UserError(
                f"{component}@{phase}[{places[bad]}]: prompt {prompts[bad]} has no baseline value there "
                "(the position lies before its first token, or the model returned NaN)"
            )
        return out

    def _before(self, phase: Phase, prompts: Sequence[int], places: Sequence[int]) -> np.ndarray:
        """Return which places lie before a prompt's first token."""
        return np.array([phase == "prompt" and place < -self._lengths[prompt] for prompt, place in zip(prompts, places, strict=True)])

    def _from_end(self, prompt: int, place: int) -> int:
        if place >= self._lengths[prompt]:
            raise UserError(f"position {place} lies outside a prompt of {self._lengths[prompt]} tokens (prompt {prompt}), whose value is needed there")
        return place - self._lengths[prompt]

    def members(self, pool: Pool) -> list[Stored]:
        """Return the stored prompts of a pool: each example once, whatever else the run asks of it."""
        if pool not in self._pools:
            self._pools[pool] = [s for s in self.pool if s.variant == pool.variant and s.text == templated(s.question, pool.template)]
        return self._pools[pool]

    def _pooled(self, pool: Pool) -> list[int]:
        return [s.index for s in self.members(pool)]

    def mean(self, component: str, layer: int | None, phase: Phase, pool: Pool, places: Sequence[int]) -> np.ndarray:
        """Return the mean (width, float64 summed in prompt order) over the pool and the given places."""
        key = ("mean", component, layer, phase, pool, tuple(places))
        if key not in self._statistics:
            prompts = self._pooled(pool)
            total: np.ndarray | float = 0.0
            for place in places:
                total = total + self.values(component, layer, phase, prompts, [place] * len(prompts)).astype(np.float64).sum(0)
            self._statistics[key] = np.asarray(total) / (len(prompts) * len(places))
        return self._statistics[key]

    def scale(self, component: str, layer: int | None, phase: Phase, pool: Pool, place: int) -> float:
        """Return the RMS deviation from the mean over the pool and the width."""
        key = ("scale", component, layer, phase, pool, place)
        if key not in self._statistics:
            prompts = self._pooled(pool)
            values = self.values(component, layer, phase, prompts, [place] * len(prompts)).astype(np.float64)
            deviation = values - self.mean(component, layer, phase, pool, [place])
            self._statistics[key] = np.sqrt(np.mean(deviation**2))
        return float(self._statistics[key])

    def difference(self, rule: str, component: str, layer: int | None, place: int) -> np.ndarray:
        """Return mean(positive) − mean(negative) over the pool (width), by ``correct``, ``clean`` or ``field=value``.

        The pool is that of the rows that are being edited, and so is a place that the file counts from the prompt's start.
        """
        at = place if self.place is None else self.place
        key = ("difference", rule, component, layer, self.phase, self.running, at)
        if key not in self._statistics:
            self._statistics[key] = self._difference(rule, component, layer, at)
        return self._statistics[key]

    def _difference(self, rule: str, component: str, layer: int | None, place: int) -> np.ndarray:
        positive, negative = self._groups(rule)
        if not positive or not negative:
            raise UserError(f"steer: difference '{rule}' needs examples on both sides; got {len(positive)} and {len(negative)}")
        first, second = (self.values(component, layer, self.phase, group, [place] * len(group)).astype(np.float64).mean(0) for group in (positive, negative))
        return (first - second).astype(np.float32)  # type: ignore[no-any-return]

    def _groups(self, rule: str) -> tuple[list[int], list[int]]:
        if rule == "clean":
            return self._pooled(replace(self.running, variant="clean")), self._pooled(replace(self.running, variant="corrupted"))
        members = self.members(self.running)
        if rule == "correct":
            return [s.index for s in members if s.correct], [s.index for s in members if s.correct is False]
        name, equals, value = rule.partition("=")
        if not equals:
            raise UserError(f"steer: difference '{rule}': write correct, clean or field=value")
        if not any(name in s.fields for s in members):
            known = sorted({f for s in members for f in s.fields})
            raise UserError(f"steer: difference: the data has no field '{name}'; it has {', '.join(known) or 'none'}")
        chosen = [s.index for s in members if str(s.fields.get(name)) == value]
        return chosen, [s.index for s in members if str(s.fields.get(name)) != value]
