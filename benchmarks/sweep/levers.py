"""What each of the engine's means gives: the same cells with one of them switched off, or sized otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

from codi_engine.core.rollout import network, packing, tokenwise

from . import latent, patching, sampled
from .comparing import agreement, table, timed
from .timing import Contender, Pass
from .workloads import OURS, PLAIN, A, B, C, Workload

#: name → how to make it, and every n-th cell that it runs
Ways = dict[str, tuple[Callable[[], Callable[[int], Pass]], int]]
SELDOM = 6


def _without(make: Callable[[], Callable[[int], Pass]], *means: tuple[Any, str]) -> Callable[[], Callable[[int], Pass]]:
    """Make an engine without some of its means: functions that do nothing, or say no."""

    def made() -> Callable[[int], Pass]:
        with ExitStack() as stack:
            for module, name in means:
                stack.enter_context(mock.patch.object(module, name, return_value=None))
            return make()

    return made


def _common(make: Callable[[], Callable[[int], Pass]]) -> Ways:
    """Return what every workload is tried without."""
    fused, own = (packing, "fuse"), (network, "_fuse_gelu")
    return {
        "attention by torch's batched products": (_without(make, (tokenwise, "suits")), 1),
        "activations after their products": (_without(make, fused), 1),
        "the model's own GELU": (_without(make, fused, own), 1),
        "weights as the model has them": (_without(make, (packing, "available")), 1),
    }


def _patching(work: patching.Patching) -> Ways:
    def engine(**options: Any) -> Callable[[], Callable[[int], Pass]]:
        return lambda: patching.Engine(work, **options).run

    return {
        OURS: (engine(), 1),
        "rows part before the edited token's first layer": (engine(apart="token"), 1),
        "rows part at the prompt's first token": (engine(apart="prompt", rows=24), SELDOM),
        "prompts' keys and values not kept between batches": (engine(cache_bytes=0), 1),
        "cells of one position in a batch": (engine(sort=True), 1),
        "unedited runs of two pairs together": (engine(together=2), 1),
        **_common(engine()),
        **{f"{rows} rows a batch": (engine(rows=rows), 1) for rows in (24, 60, 240)},
    }


def _latent(work: latent.Latent) -> Ways:
    def engine(**options: Any) -> Callable[[], Callable[[int], Pass]]:
        return lambda: latent.Engine(work, **options).run

    return {
        OURS: (engine(), 1),
        "rows part before the first latent": (engine(apart="latents"), 1),
        "rows part at the prompt's first token": (engine(apart="prompt", rows=40), SELDOM),
        "prompts' keys and values not kept between batches": (engine(cache_bytes=0), 1),
        **_common(engine()),
        **{f"{rows} rows a batch": (engine(rows=rows), 1) for rows in (30, 60, 240)},
    }


def _sampled(work: sampled.Sampled) -> Ways:
    def engine(edit: bool = True, capture: bool = True, **options: Any) -> Callable[[], Callable[[int], Pass]]:
        def make() -> Callable[[int], Pass]:
            made = sampled.Engine(work, **options)
            return lambda every: made.run(every, edit=edit, capture=capture)

        return make

    return {
        OURS: (engine(), 1),
        "all features encoded": (engine(whole=True), 1),
        "edit alone": (engine(capture=False), 1),
        "capture alone": (engine(edit=False), 1),
        PLAIN: (engine(edit=False, capture=False), 1),
        "60 rows a batch": (engine(rows=60), 1),
        **_common(engine()),
    }


def _alike(one: Pass, ours: Pass) -> Pass:
    """Leave out sampled texts that part where two tokens are as likely to rounding.

    Raises
    ------
    SystemExit: more than one in twenty does
    """
    same = [cell for cell in one.tokens if one.tokens[cell] == ours.tokens[cell]]
    if len(same) < 0.95 * len(one.tokens):
        raise SystemExit(f"{len(one.tokens) - len(same)} of {len(one.tokens)} texts differ")
    return Pass({cell: one.kept[cell] for cell in same}, {cell: one.tokens[cell] for cell in same})


def compare(work: Workload, repeats: int, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Check that every way gives the same numbers, time them and print the table; ratios are against the engine as it is.

    Raises
    ------
    SystemExit: two ways differ
    """
    if isinstance(work, A):
        ways = _patching(work.work)
    elif isinstance(work, B):
        ways = _latent(work.work)
    else:
        assert isinstance(work, C)
        ways = _sampled(work.work)
    contenders = [Contender(name, make(), every) for name, (make, every) in ways.items() if name == OURS or wanted(name)]
    other = ("edit alone", "capture alone", PLAIN)  # these compute something else

    def check(passes: Mapping[str, Pass]) -> None:
        same = agreement({name: _alike(one, passes[OURS]) if isinstance(work, C) else one for name, one in passes.items() if name not in other})
        print(f"\n{work.letter}: levers; max |Δ| {same.worst:.1e} over {same.cells} cells", flush=True)

    return table(contenders, timed(work.models, contenders, repeats, check), {}, [OURS], work.cells)
