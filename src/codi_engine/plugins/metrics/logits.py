"""Metrics of logits, read where the answer's number is predicted (after the forced ``The answer is:``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from codi_engine.core.plugin import Metric, Options, Outcome, Readings

#: rows whose log-probabilities are held in float64 at once
_CHUNK = 64
#: below this many logits of difference between clean and corrupted, an effect cannot be normalised
SMALLEST_GAP = 1e-6
_ANSWERED = frozenset({"problems", "pairs"})
_PAIRS = frozenset({"pairs"})


class AtOptions(Options):
    """``at``: ``number`` (where the answer's number is predicted) or ``first`` (the first answer token)."""

    at: Literal["number", "first"] = "number"


class KLOptions(AtOptions):
    """``direction``: ``baseline_to_edited`` is KL(baseline ‖ edited), ``edited_to_baseline`` the other way round."""

    direction: Literal["baseline_to_edited", "edited_to_baseline"] = "baseline_to_edited"


class ReduceOptions(Options):
    """``reduce``: how answers of several tokens are put together: ``first`` token, ``sum`` or ``mean`` over tokens."""

    reduce: Literal["first", "sum", "mean"] = "sum"


class NoOptions(Options):
    """No options."""


def at_place(outcome: Outcome, at: str) -> torch.Tensor:
    return outcome.number_logits if at == "number" else outcome.first_logits


def reduced(values: np.ndarray, how: str) -> np.ndarray:
    """Rows × tokens (NaN-padded) → rows; NaN where there is no answer."""
    if how == "first":
        return values[:, 0]
    total = np.where(np.isnan(values), 0.0, values).sum(1)
    count = (~np.isnan(values)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = total / count if how == "mean" else total
    return np.where(np.isnan(values[:, 0]), np.nan, out)


class _AtMetric(Metric[AtOptions]):
    """A metric of the logits at one place."""

    def __init__(self, options: AtOptions) -> None:
        super().__init__(options)
        self.needs = frozenset({f"{options.at}_logits"})
        if options.at == "number":
            self.applies_to = _ANSWERED


class KL(_AtMetric):
    """Kullback–Leibler divergence (nats) between the unedited and the edited next-token distributions; 0 for equal logits."""

    name = "kl"
    Options = KLOptions

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        options = self.options
        assert isinstance(options, KLOptions)
        base, edited = at_place(read.baseline, options.at), at_place(read.edited, options.at)
        first, second = (base, edited) if options.direction == "baseline_to_edited" else (edited, base)
        parts = [_kl(first[i : i + _CHUNK], second[i : i + _CHUNK]) for i in range(0, len(first), _CHUNK)]
        return {"kl": np.concatenate(parts) if parts else np.empty(0)}


def _kl(p: torch.Tensor, q: torch.Tensor) -> np.ndarray:
    lp, lq = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
    value = (lp.exp() * (lp - lq)).sum(-1).clamp_min(0.0)
    same = (p == q).all(-1)
    return torch.where(same, torch.zeros_like(value), value).cpu().numpy()


class RMSLogitDiff(_AtMetric):
    """Root mean square over the vocabulary of edited minus unedited logits."""

    name = "rms_logit_diff"
    Options = AtOptions

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        a, b = at_place(read.edited, self.options.at), at_place(read.baseline, self.options.at)
        parts = [(a[i : i + _CHUNK].double() - b[i : i + _CHUNK].double()).pow(2).mean(-1).sqrt().cpu().numpy() for i in range(0, len(a), _CHUNK)]
        return {"rms_logit_diff": np.concatenate(parts) if parts else np.empty(0)}


class ArgmaxChanged(_AtMetric):
    """1 where the most likely next token differs from the unedited run's."""

    name = "argmax_changed"
    Options = AtOptions

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        a, b = at_place(read.edited, self.options.at), at_place(read.baseline, self.options.at)
        return {"argmax_changed": (a.argmax(-1) != b.argmax(-1)).cpu().numpy().astype(np.float64)}


class LogitDiff(Metric[ReduceOptions]):
    """Logit of the gold answer minus logit of the other one (partner's or donor's), at the number's place.

    NaN where there is no other answer. Answers of several tokens: ``reduce``, each token after its own predecessors.
    """

    name = "logit_diff"
    Options = ReduceOptions
    needs = frozenset({"number_logits", "gold", "other"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        how = self.options.reduce
        return {"logit_diff": reduced(read.edited.gold_logit, how) - reduced(read.edited.other_logit, how)}


class NormalizedEffect(Metric[ReduceOptions]):
    """(edited − corrupted) / (clean − corrupted) of the logit difference, clean answer minus corrupted answer.

    0: as corrupted, 1: as clean (Heimersheim & Nanda 2024, 2404.15255). NaN where clean and corrupted differ by less
    than 1e-6 logits.
    """

    name = "normalized_effect"
    Options = ReduceOptions
    needs = frozenset({"number_logits", "gold", "other"})
    applies_to = _PAIRS

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        assert read.clean is not None and read.corrupted is not None and read.clean_is_gold is not None
        edited = self._difference(read.edited, read.clean_is_gold)
        clean = self._difference(read.clean, np.ones(len(edited), bool))
        corrupted = self._difference(read.corrupted, np.zeros(len(edited), bool))
        gap = clean - corrupted
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"normalized_effect": np.where(np.abs(gap) < SMALLEST_GAP, np.nan, (edited - corrupted) / gap)}

    def _difference(self, outcome: Outcome, clean_is_gold: np.ndarray) -> np.ndarray:
        gold, other = reduced(outcome.gold_logit, self.options.reduce), reduced(outcome.other_logit, self.options.reduce)
        difference: np.ndarray = np.where(clean_is_gold, gold - other, other - gold)
        return difference


class Probability(Metric[NoOptions]):
    """Probability of the gold answer (all its tokens, teacher-forced)."""

    name = "prob"
    Options = NoOptions
    needs = frozenset({"number_logits", "gold"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"prob": np.exp(reduced(read.edited.gold_logprob, "sum"))}


class Rank(Metric[NoOptions]):
    """Rank of the gold answer's first token among all tokens; 1 is the most likely, ties count half. NaN without gold."""

    name = "rank"
    Options = NoOptions
    needs = frozenset({"number_logits", "gold"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        logits = read.edited.number_logits
        token = torch.from_numpy(np.maximum(read.gold_token, 0)).to(logits.device)
        own = logits.gather(1, token[:, None])
        rank = 1 + (logits > own).sum(-1) + 0.5 * ((logits == own).sum(-1) - 1)
        return {"rank": np.where(read.gold_token < 0, np.nan, rank.cpu().numpy().astype(np.float64))}


class CrossEntropy(Metric[ReduceOptions]):
    """Teacher-forced cross-entropy (nats) of the gold answer: −log p, summed (or averaged) over its tokens."""

    name = "cross_entropy"
    Options = ReduceOptions
    needs = frozenset({"number_logits", "gold"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"cross_entropy": -reduced(read.edited.gold_logprob, self.options.reduce)}


class Perplexity(Metric[NoOptions]):
    """Perplexity of the gold answer: exp of its cross-entropy per token, teacher-forced; 1 is certainty. NaN without gold."""

    name = "perplexity"
    Options = NoOptions
    needs = frozenset({"number_logits", "gold"})
    applies_to = _ANSWERED

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"perplexity": np.exp(-reduced(read.edited.gold_logprob, "mean"))}


class _SideScore(Metric[ReduceOptions]):
    """Log-probability of one side's answer, whichever prompt was run."""

    Options = ReduceOptions
    needs = frozenset({"number_logits", "gold", "other"})
    applies_to = _PAIRS
    clean: bool

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        assert read.clean_is_gold is not None
        gold, other = (reduced(v, self.options.reduce) for v in (read.edited.gold_logprob, read.edited.other_logprob))
        return {self.name: np.where(read.clean_is_gold == self.clean, gold, other)}


class CleanScore(_SideScore):
    """Log-probability of the clean answer, whichever prompt was run."""

    name = "clean_score"
    clean = True


class CorruptedScore(_SideScore):
    """Log-probability of the corrupted answer, whichever prompt was run."""

    name = "corrupted_score"
    clean = False
