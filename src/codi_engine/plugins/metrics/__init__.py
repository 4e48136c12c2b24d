"""Built-in metrics."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import Metric
from codi_engine.plugins.metrics.answer import Accuracy, EqualsOther, EqualsPredicted, Flip
from codi_engine.plugins.metrics.captures import L2, CleanSimilarity, Cosine, Norm
from codi_engine.plugins.metrics.logits import (
    KL,
    ArgmaxChanged,
    CleanScore,
    CorruptedScore,
    CrossEntropy,
    LogitDiff,
    NormalizedEffect,
    Perplexity,
    Probability,
    Rank,
    RMSLogitDiff,
)
from codi_engine.plugins.metrics.outcome import AnswerClass, Outcome
from codi_engine.plugins.metrics.states import Unusual

METRICS: list[type[Metric[Any]]] = [
    Accuracy, Flip, EqualsOther, EqualsPredicted, KL, LogitDiff, NormalizedEffect, Probability, Rank, CrossEntropy,
    RMSLogitDiff, ArgmaxChanged, CleanScore, CorruptedScore, Norm, Cosine, L2, CleanSimilarity,
    AnswerClass, Perplexity, Outcome, Unusual,
]  # fmt: skip
