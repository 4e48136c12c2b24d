"""What an intervention must be: a function of each row by itself, whatever batch the row is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from codi_engine.core.plugin import Intervention, Rows
from codi_engine.testing.bench import Bench, Draws, chosen, sweep
from codi_engine.testing.runs import small_data
from codi_engine.testing.suite import DEMO, TRIES, Suite, demand

_SCALES = st.sampled_from([1e-3, 1.0, 30.0])


class InterventionSuite(Suite):
    """Conformance of an intervention.

    Attributes
    ----------
    plugin, options: see :class:`Suite`
    site: where it is tried, an address of the demo model (layers 0 to 2, steps 0 to 5)
    address: further address keys, such as ``{"direction": "noise"}``; chosen by ``source`` where empty
    pairs: True tries it on clean/corrupted pairs; those that take the partner's value are anyway, others on problems
    data: the ``data:`` of the tiny sweep, instead
    experiment: further keys of the tiny sweep's experiment, such as another ``model``
    """

    kind = "intervention"
    site: ClassVar[str] = "resid_post.1@latent[2]"
    address: ClassVar[Mapping[str, Any]] = {}
    pairs: ClassVar[bool] = False
    data: ClassVar[Mapping[str, Any] | None] = None
    experiment: ClassVar[Mapping[str, Any]] = {}
    _benches: ClassVar[dict[Any, Bench]] = {}

    def bench(self, setting: Mapping[str, Any], batch_size: int | str = "auto") -> Bench:
        """Return a tiny sweep of the demo model with this setting, run once."""
        key = (type(self), repr(sorted(setting.items())), batch_size)
        if key not in self._benches:
            self._benches[key] = sweep(self.plugin, setting, self.keys(setting), batch_size)
        return self._benches[key]

    def keys(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """Return the experiment of the tiny sweep, without the intervention's own options."""
        partner = self.build(setting).source == "partner"
        address = self.address or ({"direction": "denoise"} if partner else {"on": "clean"} if self.pairs else {})
        return {
            "name": "conformance",
            "model": dict(DEMO),
            "data": dict(self.data or small_data("pairs" if partner or self.pairs else "problems")),
            "metrics": [{"plugin": "kl", "at": "first"}, "flip"],
            "generate": {"max_new_tokens": 4},
            "controls": "none",
            "intervention": {"site": self.site, **address},
            **self.experiment,
        }

    # ------------------------------------------------------------------------------------------- demands

    def test_it_gives_one_new_value_per_value(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        new = instance.apply(chosen(rows, range(len(rows.values))))
        demand(isinstance(new, torch.Tensor), f"apply() must return a tensor; it returned {type(new).__name__}")
        wanted = (rows.values.shape, rows.values.dtype, rows.values.device)
        demand(
            (new.shape, new.dtype, new.device) == wanted,
            f"apply() must keep shape, dtype and device {wanted}; it returned {(new.shape, new.dtype, new.device)}",
        )

    def test_it_keeps_lower_precision(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        new = instance.apply(_in_bfloat16(rows))
        demand(new.dtype == torch.bfloat16, f"apply() must return the dtype of rows.values: bfloat16 became {new.dtype}")

    def test_it_never_changes_its_input_in_place(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        given = chosen(rows, range(len(rows.values)))
        before = chosen(given, range(len(rows.values)))
        instance.apply(given)
        for name in ("values", "source", "scale"):
            old, now = getattr(before, name), getattr(given, name)
            demand(old is None or torch.equal(old, now), f"apply() changed rows.{name} in place; return a new tensor: the engine needs the old one")

    def test_many_rows_at_once_are_the_rows_one_by_one(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call

        @TRIES
        @given(st.integers(0, 2**31 - 1), _SCALES)
        def check(seed: int, scale: float) -> None:
            given_rows = _drawn(rows, seed, scale)
            whole = instance.apply(chosen(given_rows, range(len(rows.values))))
            for row in range(len(rows.values)):
                alone = instance.apply(chosen(given_rows, [row]))
                demand(
                    _same(whole[row : row + 1], alone),
                    f"row {row} in the batch must be what it is alone, bit for bit; it differs by {_gap(whole[row : row + 1], alone)}",
                )

        check()

    def test_a_row_does_not_depend_on_its_neighbours_or_its_place(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        whole = instance.apply(chosen(rows, range(len(rows.values))))

        @TRIES
        @given(st.lists(st.integers(0, len(rows.values) - 1), min_size=1, max_size=9))
        def check(index: list[int]) -> None:
            part = instance.apply(chosen(rows, index))
            demand(
                _same(part, whole[index]),
                f"rows {index} must get the same values in any batch and order, bit for bit; they differ by {_gap(part, whole[index])}",
            )

        check()

    def test_finite_values_stay_finite(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        for seed, scale in ((0, 1e-3), (1, 1.0), (2, 1e3)):
            new = instance.apply(_drawn(rows, seed, scale))
            demand(torch.isfinite(new).all(), f"apply() made NaN or infinity out of finite values of size {scale:g}")

    def test_a_zero_vector_gives_no_nan(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        new = instance.apply(replace(chosen(rows, range(len(rows.values))), values=torch.zeros_like(rows.values)))
        demand(torch.isfinite(new).all(), "apply() divides by the size of a row that is zero; say what happens there")

    def test_the_same_rows_twice_give_the_same_values(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        index = range(len(rows.values))
        first, second = instance.apply(chosen(rows, index)), instance.apply(chosen(rows, index))
        demand(_same(first, second), "apply() must be deterministic; for randomness take rows.draws(), which belong to the cell, and state `random = True`")

    def test_random_is_declared_iff_draws_are_used(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        given_rows = chosen(rows, range(len(rows.values)))
        instance.apply(given_rows)
        asked = given_rows.draws.asked > 0
        demand(instance.random or not asked, "apply() takes rows.draws() but `random` is False: cells with equal edits would share a row and its draws")
        still = asked or not instance.random or instance.identity()
        demand(still, "`random` is True but rows.draws() is never taken: cells that could share their computation do not")

    def test_it_takes_only_the_source_and_scale_that_it_declares(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        known = (None, "own", "partner", "donor", "mean", "mean_over_steps")
        demand(instance.source in known, f"source: {instance.source!r} must be one of {known}")
        demand(instance.source is None or rows.source is not None, f"the engine gave no source though `source = {instance.source!r}`")
        bare = chosen(rows, range(len(rows.values)))
        bare = replace(bare, source=bare.source if instance.source else None, scale=bare.scale if instance.needs_scale else None)
        try:
            instance.apply(bare)
        except (AttributeError, TypeError, AssertionError) as error:
            raise AssertionError(
                f"apply() fails with exactly what it declares (source {instance.source!r}, needs_scale {instance.needs_scale}): {error}"
            ) from error

    def test_options_that_say_identity_leave_every_value(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        if instance.identity():
            own = _own_source(instance, rows)
            demand(_same(instance.apply(own), own.values), "identity() is True, so apply() must return every value bit for bit")

    def test_its_neutral_options_leave_every_value(self, setting: Mapping[str, Any]) -> None:
        instance, rows = self.bench(setting).call
        neutral = instance.neutral()
        if neutral is None:
            return
        demand(type(neutral) is type(instance), f"neutral() must return a {type(instance).__name__}; it returned {type(neutral).__name__}")
        prepared = [i for i, _ in self.bench(setting).others if i.options == neutral.options]
        again = _own_source(instance, chosen(rows, range(len(rows.values))))
        new = (prepared or [neutral])[0].apply(again)
        demand(_same(new, again.values), f"neutral() must leave every value bit for bit; {neutral.options!r} changes it by {_gap(new, again.values)}")

    # ---------------------------------------------------------------------------------------- in the engine

    def test_a_tiny_sweep_runs_and_the_gate_lets_it_pass(self, setting: Mapping[str, Any]) -> None:
        bench = self.bench(setting)
        if bench.error is not None:
            raise bench.error
        demand(bench.cells is not None and len(bench.cells) > len(bench.cells.example.unique()), "the sweep must have edited cells")

    def test_batches_of_one_give_the_same_cells(self, setting: Mapping[str, Any]) -> None:
        batched, single = self.bench(setting), self.bench(setting, 1)
        for bench in (batched, single):
            if bench.error is not None:
                raise bench.error
        assert batched.cells is not None
        assert single.cells is not None
        demand(batched.cells.equals(single.cells), "cells computed in batches and one at a time must be the same, bit for bit")


def _drawn(rows: Rows, seed: int, scale: float) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    values = (scale * torch.randn(rows.values.shape, generator=generator)).to(rows.values)
    return chosen(rows, range(len(values)), values)


def _in_bfloat16(rows: Rows) -> Rows:
    def lower(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(torch.bfloat16)

    copy = chosen(rows, range(len(rows.values)))
    return replace(copy, values=copy.values.to(torch.bfloat16), source=lower(copy.source), scale=copy.scale, draws=Draws(copy.draws.values.to(torch.bfloat16)))


def _own_source(instance: Intervention[Any], rows: Rows) -> Rows:
    """Return rows whose source is their own value: what a donor or partner that is the row itself gives."""
    copy = chosen(rows, range(len(rows.values)))
    return copy if instance.source is None else replace(copy, source=copy.values.clone())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a.float().cpu().numpy(), b.float().cpu().numpy(), equal_nan=True))


def _gap(a: torch.Tensor, b: torch.Tensor) -> str:
    return f"{(a.float() - b.float()).abs().max().item():.3g}" if a.shape == b.shape else f"shape {list(a.shape)} against {list(b.shape)}"
