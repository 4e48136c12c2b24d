"""Rows that are no numbers: an unedited one stops the run, an edited one is marked and counted, and it is said where it began."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.running.marks import counts

if TYPE_CHECKING:
    from codi_engine.core.rollout.editing import Placed
    from codi_engine.core.rollout.rollout import Task
    from codi_engine.core.rollout.tasks import Apply
    from codi_engine.core.running.job import Job


class Watch:
    """What becomes of rows that are not finite.

    Parameters
    ----------
    policy: ``stop`` or ``mark`` for all rows; None stops at unedited ones, with which everything is compared, and marks edited ones
    note: tells the user one line
    """

    def __init__(self, policy: str | None, note: Callable[[str], None]) -> None:
        self.stops_unedited, self.stops_edited = policy != "mark", policy == "stop"
        self.note = note
        self._told: set[tuple[str, str]] = set()

    def unedited(self, job: Job, keys: Sequence[str], broken: np.ndarray, tasks: Callable[[str], Task]) -> None:
        """Look at a batch of unedited rows, one key of a prompt each.

        Raises
        ------
        UserError: one of them is not finite and the policy is to stop
        """
        if not broken.any() or (not self.stops_unedited and ("", "") in self._told):
            return
        self._told.add(("", ""))
        key = keys[int(np.flatnonzero(broken)[0])]
        ref = job.prompts[key]
        who = f"example '{ref.example}'" + ("" if ref.variant == "main" else f" ({ref.variant})")
        where, dtype = first_broken(job, key, tasks(key)), job.net.info.dtype
        if self.stops_unedited:
            raise UserError(f"{job.experiment.source}: data: {who}: unedited, the model's values are not finite, first in {where} ({dtype}).\n{_remedy(dtype)}")
        self.note(f"unedited rows are not finite and are marked, first {who} in {where} ({dtype}; {int(broken.sum())} of {len(keys)} rows of its batch)")

    def edited(self, job: Job, placed: Sequence[Placed], broken: np.ndarray, task: Callable[[Placed], tuple[Task, Apply]]) -> None:
        """Look at a batch of edited cells.

        Raises
        ------
        UserError: one of them is not finite and the policy is to stop
        """
        names = [job.plan.conditions[p.cell.condition].name for p in placed]
        for name in sorted({names[i] for i in np.flatnonzero(broken)}):
            if ("", name) in self._told:
                continue
            self._told.add(("", name))
            mine = [placed[i] for i in np.flatnonzero(broken).tolist() if names[i] == name]
            asked, apply = task(mine[0])
            at, dtype = first_broken(job, job.order[mine[0].prompt], asked, apply), job.net.info.dtype
            many = f"{len(mine)} of {names.count(name)} cells of its batch"
            if self.stops_edited:
                raise UserError(
                    f"{job.experiment.source}: condition '{name}': after the edit the model's values are not finite at {_place(mine[0])}, first in {at} "
                    f"({dtype}; {many}).\nMake the edit smaller, use a dtype of larger range, or leave such cells out and count them with nonfinite: mark."
                )
            self.note(
                f"condition '{name}': after the edit the model's values are not finite, first at {_place(mine[0])} in {at} ({dtype}; {many}); "
                "these cells are marked and their metrics undefined: is the edit too large for the model's dtype?"
            )

    def metrics(self, conditions: Sequence[str], placed: Sequence[Placed], columns: Mapping[str, np.ndarray]) -> None:
        """Say once per condition where a metric of finite logits is infinite; ``conditions``: the rows' names."""
        for column, values in columns.items():
            infinite = np.flatnonzero(np.isinf(values)).tolist()
            for name in sorted({conditions[i] for i in infinite}):
                if (column, name) not in self._told:
                    self._told.add((column, name))
                    mine = [placed[i] for i in infinite if conditions[i] == name]
                    self.note(
                        f"condition '{name}': metric '{column}' is infinite, first at {_place(mine[0])} "
                        f"({len(mine)} of {conditions.count(name)} cells of its batch); means over these cells are no numbers"
                    )


def _remedy(dtype: str) -> str:
    if dtype == "float16":
        return "Everything is compared with it. Set model.dtype: float32 or bfloat16, whose range is larger; nonfinite: mark leaves such rows out."
    return "Everything is compared with it. Are the checkpoint's weights finite and of a usual size? nonfinite: mark leaves such rows out."


def _place(placed: Placed) -> str:
    cell = placed.cell
    return ", ".join([f"example '{cell.example}'", *(f"{axis} {_one(value)}" for axis, value in cell.values.items())])


def _one(value: object) -> object:
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def first_broken(job: Job, key: str, task: Task, apply: Apply | None = None) -> str:
    """Run a row once more, alone, and return the first residual stream that is not finite, as an address."""
    ids, info = job.ids[key], job.net.info
    layers = tuple(range(info.layers))
    places: dict[Any, tuple[int, ...]] = {"prompt": tuple(range(-len(ids), 0)), "latent": tuple(range(info.latents)), "answer": (0,)}
    captures = {("resid_post", phase): (layers, at) for phase, at in places.items() if at}
    want = replace(job.want((), ()), captures=captures, generate=False, observers=())
    arguments = () if apply is None else (apply,)
    produced = job.rollout.run([ids], [replace(task, prompt=0)], want, *arguments)
    for phase, at in places.items():
        found = [produced.captures[k] for layer in layers if (k := ("resid_post", layer, phase)) in produced.captures]
        if not found:
            continue
        bad = (~torch.isfinite(torch.stack(found)).all(-1)[:, 0]).cpu().numpy()  # layers × places
        if phase == "latent" and task.latents is not None:
            bad[:, task.latents :] = False  # never reached
        if bad.any() and phase == "prompt":
            return f"resid_post.{bad.any(1).argmax()}@prompt"  # within a layer a NaN reaches earlier positions too: 0 · NaN is NaN
        if bad.any():
            place = bad.any(0).argmax()
            return f"resid_post.{bad[:, place].argmax()}@{phase}[{at[place]}]"
    return "the logits or the generated text"


def check_policy(committed: Mapping[int, Mapping[str, Any]], policy: str | None, path: object) -> None:
    """Refuse to go on with a run that holds rows at which the policy would have stopped.

    Raises
    ------
    DifferentRun: it does
    """
    unedited, edited = counts(committed)
    watch = Watch(policy, lambda _: None)
    what = f"{unedited:,} unedited rows" if unedited and watch.stops_unedited else f"{edited:,} edited cells" if edited and watch.stops_edited else ""
    if what:
        said = "nonfinite: stop" if policy == "stop" else "without nonfinite: mark"
        raise DifferentRun(f"{path}: holds {what} that are not finite, which {said} does not allow.\nSet nonfinite: mark again, or choose a new output.")


def undefined(columns: Mapping[str, np.ndarray], broken: np.ndarray) -> dict[str, np.ndarray]:
    """Return metric columns that are NaN in marked rows: a text that ends where numbers end is no wrong answer."""
    return {name: np.where(broken, np.nan, values) for name, values in columns.items()} if broken.any() else dict(columns)
