"""What five studies of CODI models really computed, defects included, as plugins: to reproduce their numbers, not to repeat them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codi_engine import hookimpl

if TYPE_CHECKING:
    from codi_engine.core.plugin import Analysis, Intervention, Metric, Model

codi_engine_spec = 1


@hookimpl
def models() -> list[type[Model[Any]]]:
    from codi_engine_originals.checkpoints import CeCodi, FlatPad

    return [CeCodi, FlatPad]


@hookimpl
def interventions() -> list[type[Intervention[Any]]]:
    from codi_engine_originals.edits import CePatch, CeZero, EarlySwap

    return [CePatch, CeZero, EarlySwap]


@hookimpl
def metrics() -> list[type[Metric[Any]]]:
    from codi_engine_originals.measures import AnswerLogitDiff, OriginalAnswer

    return [OriginalAnswer, AnswerLogitDiff]


@hookimpl
def analyses() -> list[type[Analysis[Any]]]:
    from codi_engine_originals.formulas import OriginalImportance, OriginalRecovery

    return [OriginalRecovery, OriginalImportance]
