"""Metrics of captured hidden states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Metric, Options, Outcome, Readings


class CaptureOptions(Options):
    """``site``: one of the captured sites (needed when several are); all its layers and steps are averaged."""

    site: str | None = None


class _CaptureMetric(Metric[CaptureOptions]):
    """A metric of one captured site."""

    Options = CaptureOptions
    needs = frozenset({"captures"})

    def values(self, outcome: Outcome) -> np.ndarray:
        """Return rows × vectors × width in float64."""
        known = list(outcome.captures)
        site = self.options.site
        if site is None:
            if len(known) != 1:
                raise UserError(f"metrics: '{self.name}': several sites are captured; set site: to one of {', '.join(known)}")
            site = known[0]
        if site not in outcome.captures:
            raise UserError(f"metrics: '{self.name}': site '{site}' is not captured; {nearest(site, known)}")
        array = np.asarray(outcome.captures[site], np.float64)
        return array.reshape(len(array), -1, array.shape[-1])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of vectors along the last axis; 1 for two zero vectors, 0 where one is zero."""
    na, nb = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    both = na * nb
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.clip((a * b).sum(-1) / both, -1.0, 1.0)
    value = np.where((a == b).all(-1), 1.0, value)
    return np.where((both == 0) & ((na > 0) | (nb > 0)), 0.0, value)


class Norm(_CaptureMetric):
    """Euclidean norm of the captured vectors, averaged over layers and steps."""

    name = "norm"

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"norm": np.linalg.norm(self.values(read.edited), axis=-1).mean(1)}


class Cosine(_CaptureMetric):
    """Cosine between captured vectors and the unedited run's, averaged over layers and steps."""

    name = "cosine"

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"cosine": cosine(self.values(read.edited), self.values(read.baseline)).mean(1)}


class L2(_CaptureMetric):
    """Euclidean distance of captured vectors to the unedited run's, averaged over layers and steps."""

    name = "l2"

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"l2": np.linalg.norm(self.values(read.edited) - self.values(read.baseline), axis=-1).mean(1)}


class CleanSimilarity(_CaptureMetric):
    """Cosine (``clean_cosine``) and distance (``clean_l2``) of captured vectors to the clean partner's, averaged."""

    name = "clean_similarity"
    applies_to = frozenset({"pairs"})

    def columns(self) -> tuple[str, str]:
        return ("clean_cosine", "clean_l2")

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        assert read.clean is not None
        a, b = self.values(read.edited), self.values(read.clean)
        return {"clean_cosine": cosine(a, b).mean(1), "clean_l2": np.linalg.norm(a - b, axis=-1).mean(1)}
