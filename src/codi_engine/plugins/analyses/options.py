"""Options of ``importance``, and what it knows of metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from codi_engine.core.plugin import Options

#: metrics that compare with the unedited run already; others are taken as edited minus unedited
CONTRASTS = ("kl", "flip", "rms_logit_diff", "argmax_changed", "equals_other", "equals_predicted", "l2", "clean_l2")
#: of these, yes or no per example
YES_NO = ("flip", "argmax_changed", "equals_other", "equals_predicted")
PREFERRED = ("normalized_effect", "kl", "logit_diff", "cross_entropy", "flip", "accuracy")


def yes_or_no(metric: str) -> bool:
    """Say whether a metric answers yes or no, so that its mean is a share."""
    return any(metric == name or metric.startswith(f"{name}_") for name in YES_NO)


class ImportanceOptions(Options):
    """``metric``: which one to rank by (default: the first there is of normalized_effect, kl, logit_diff …).

    ``by``: a field of the data to split by. ``correction`` runs over the whole table; ``min_effect`` is a further
    threshold on |mean|. ``top``: rows of the ranking.
    ``q``: level of the tests after correction. ``confidence``: of intervals.
    """

    metric: str | None = None
    by: str | None = None
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni"] = "bh"
    min_effect: float = Field(default=0.0, ge=0.0)
    top: int = Field(default=10, ge=1)
