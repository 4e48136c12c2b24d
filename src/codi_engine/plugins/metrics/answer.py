"""Metrics of the extracted answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from codi_engine.core.plugin import Metric, Options, Readings
from codi_engine.core.solutions.answers import equal


class NoOptions(Options):
    """No options."""


_ANSWERED = frozenset({"problems", "pairs"})


class Accuracy(Metric[NoOptions]):
    """1 where the answer equals the gold answer of the prompt that was run, else 0 (no answer: 0)."""

    name = "accuracy"
    Options = NoOptions
    needs = frozenset({"generation"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"accuracy": equal(read.edited.answer, read.gold).astype(np.float64)}


class Flip(Metric[NoOptions]):
    """1 where the answer differs from the unedited run's; having no answer is an outcome of its own (none = none: 0)."""

    name = "flip"
    Options = NoOptions
    needs = frozenset({"generation"})

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        a, b = read.edited.answer, read.baseline.answer
        same = equal(a, b) | (np.isnan(a) & np.isnan(b))
        return {"flip": (~same).astype(np.float64)}


class EqualsOther(Metric[NoOptions]):
    """1 where the answer equals the other one: the partner's (pairs) or the donor's (resample). NaN where there is none."""

    name = "equals_other"
    Options = NoOptions
    needs = frozenset({"generation"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        same = equal(read.edited.answer, read.other).astype(np.float64)
        return {"equals_other": np.where(np.isnan(read.other), np.nan, same)}


class EqualsPredicted(Metric[NoOptions]):
    """1 where the answer is the one that the algebra predicts of the exchange (``resample`` with ``carries``).

    The prediction is the recipient's written solution with the donor's intermediate value in place of its own (interchange
    interventions, Geiger et al. 2021, 2106.02997). NaN where nothing is predicted, and where the prediction is the recipient's
    own answer, which nothing could tell from no effect.
    """

    name = "equals_predicted"
    Options = NoOptions
    needs = frozenset({"generation"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        predicted = np.full(len(read.gold), np.nan) if read.predicted is None else read.predicted
        same = equal(read.edited.answer, predicted).astype(np.float64)
        undefined = np.isnan(predicted) | equal(predicted, read.gold)
        return {"equals_predicted": np.where(undefined, np.nan, same)}
