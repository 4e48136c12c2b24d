"""Controls: what else could have had a condition's effect, run beside it at the same places.

A control is a condition of its own, called ``<condition>~<control>``; it is no condition of interest, and analyses leave
it out unless it is asked for by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Intervention

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from codi_engine.core.experiment import Experiment
    from codi_engine.core.model import ModelInfo
    from codi_engine.core.planning.conditions import Condition
    from codi_engine.core.plugin import Data
    from codi_engine.core.plugins import Plugins

#: what a control puts in the place of the edit (see docs/experiment-file.md)
CONTROLS = ("random", "wrong_step", "shuffled")
#: ``auto`` runs controls on the first so many examples: a constant, so that a larger ``limit`` keeps the same ones, and few
#: enough to cost little beside the sweep; 16 pairs tell a difference of 0.75 standard deviations from none (80 % power)
AUTO_EXAMPLES = 16
MARK = "~"


def control_of(name: str) -> tuple[str, str] | None:
    """Return (condition, control) of a control's name; None for every other condition."""
    condition, mark, control = name.rpartition(MARK)
    return (condition, control) if mark and condition and control in CONTROLS else None


def is_control(name: object) -> bool:
    """Say whether a condition of this name is a control of another one."""
    return control_of(str(name)) is not None


def without_controls(names: Iterable[str]) -> list[str]:
    """Return the conditions of interest."""
    return [n for n in names if not is_control(n)]


def control_rows(conditions: pd.Series) -> np.ndarray:
    """Return which rows of a column of conditions are controls'."""
    return conditions.isin([n for n in conditions.unique() if is_control(n)]).to_numpy(bool)


def in_words(control: str) -> str:
    """Return how a control is called in sentences: ``wrong step``."""
    return control.replace("_", " ")


def controls_of(conditions: Iterable[Condition], experiment: Experiment, plugins: Plugins, data: Data, info: ModelInfo) -> list[Condition]:
    """Return the controls of an experiment's conditions.

    Parameters
    ----------
    conditions: those that say something (a vacuous one needs no control)

    Raises
    ------
    UserError: a control is asked for by name that no condition can have
    """
    asked = experiment.controls
    if asked == "none" or not asked:
        return []
    wanted = CONTROLS if asked == "auto" else tuple(c for c in CONTROLS if c in asked)
    examples = AUTO_EXAMPLES if asked == "auto" else None
    made = [
        replace(condition, name=f"{condition.name}{MARK}{control}", control=control, examples=examples)
        for condition in conditions
        for control in wanted
        if control in _sensible(condition, plugins, data, info)
    ]
    missing = [c for c in wanted if not any(m.control == c for m in made)] if asked != "auto" else []
    if missing:
        raise UserError(
            f"{experiment.source}: controls: no condition of this experiment can have '{missing[0]}'; {_remedy(wanted, missing)}\n"
            "Controls are for edits that put in another prompt's state (patch, resample …); wrong_step is for latent steps, shuffled for chosen donors."
        )
    return made


def _remedy(wanted: Sequence[str], missing: Sequence[str]) -> str:
    """Say what to write instead of a list of controls of which some are impossible."""
    left = [c for c in wanted if c not in missing]
    return f"write controls: [{', '.join(left)}]" if left else "write controls: none, or leave it to auto"


def _sensible(condition: Condition, plugins: Plugins, data: Data, info: ModelInfo) -> list[str]:
    """Return the controls that make sense for a condition: of those that put in another prompt's state."""
    from codi_engine.core.planning.conditions import build_intervention

    options: Mapping[str, object] = condition.first_options
    probe = build_intervention(plugins, condition.plugin, options, "", "")
    if probe.source not in ("partner", "donor") or condition.tokens is not None or probe.identity() or probe.gate_exempt:
        return []
    controls = list(CONTROLS)
    if condition.phase != "latent" or info.latents < 2 or condition.plugin.source_at is not Intervention.source_at:
        controls.remove("wrong_step")
    drawn_at_random = probe.source == "donor" and not options.get("match")
    if drawn_at_random or len(data.pool) < 2:
        controls.remove("shuffled")
    return controls
