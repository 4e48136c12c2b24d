from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from codi_engine import Experiment, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.rollout import memory, rollout
from codi_engine.core.rollout.memory import in_batches
from codi_engine.core.running.run import run_experiment


def test_batches_halve_until_they_fit() -> None:
    done: list[int] = []
    notes: list[str] = []

    def run(batch: Sequence[int]) -> None:
        if len(batch) > 3:
            raise torch.OutOfMemoryError("out")
        done.extend(batch)

    assert in_batches(list(range(20)), 16, run, notes.append) == 2
    assert done == list(range(20))
    assert len(notes) == 3


def test_other_errors_are_not_swallowed_and_one_row_is_the_end() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        in_batches([1], 1, _raise(RuntimeError("bad shape")), print)
    with pytest.raises(UserError, match="single row"):
        in_batches([1, 2], 2, _raise(MemoryError()), print)


def _raise(error: BaseException) -> Callable[[Sequence[int]], None]:
    def run(_: Sequence[int]) -> None:
        raise error

    return run


def test_results_do_not_depend_on_the_batch_size_or_on_a_back_off(demo: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    def make(batch_size: int | str) -> Experiment:
        spec = {"plugin": "patch", "site": "mlp_out", "direction": "noise"}
        return demo(intervention=spec, sweep={"layer": "all", "step": [0, 4]}, batch_size=batch_size)

    run_experiment(make("auto"), "auto")
    run_experiment(make(5), "five")
    real = rollout.Rollout.run

    def small(self: rollout.Rollout, prompts: Sequence[Sequence[int]], tasks: Sequence[rollout.Task], *rest: object) -> rollout.Produced:
        if len(tasks) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, prompts, tasks, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rollout.Rollout, "run", small)
    monkeypatch.setattr(memory, "ROWS_ON_CPU", 32)
    monkeypatch.setattr("codi_engine.core.running.gate.EXAMPLES", 1)
    monkeypatch.setattr("codi_engine.core.running.gate._chosen", lambda job, condition: [])
    run_experiment(make("auto"), "squeezed")
    for other in ("five", "squeezed"):
        pd.testing.assert_frame_equal(open_run("auto").cells, open_run(other).cells, check_exact=True)
