"""What a model's last norm and unembedding read in hidden states: ranks, probabilities, entropy, first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.running.reading import number_text

if TYPE_CHECKING:
    import torch

    from codi_engine.core.model import ModelAdapter
    from codi_engine.core.rollout.network import Network
    from codi_engine.core.running.reading import Answers

#: components that the final norm has been applied to already
NORMED = ("latent_out", "final_norm")
#: components of the residual stream, which the final norm can be applied to
RESIDUAL = ("resid_post", "resid_mid", "resid_pre")
#: numbers of the vocabulary's size that a batch holds at once for each row (logits, log-probabilities, comparisons)
_COPIES = 6


class Texts:
    """Token id → its text, or its number where it is no ordinary text."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self._adapter = adapter
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._adapter.decode([token]) or f"<{token}>"
        return self._known[token]


class Spelling:
    """Number → ids of the tokens that it may begin with.

    ``how``: ``answer``, as the model writes an answer (after the forced prefix, with its space); ``bare``, as a number that
    follows no space (``=12>>``); ``both``.
    """

    def __init__(self, answers: Answers, how: str) -> None:
        self.answers, self.how = answers, how
        self._known: dict[float, tuple[int, ...]] = {}
        #: numbers that take several tokens, and numbers without any
        self.several: set[float] = set()
        self.lost: set[float] = set()

    def tokens(self, value: float) -> tuple[int, ...]:
        """Return the ids; empty for no number and for one that cannot be written in tokens."""
        if np.isnan(value):
            return ()
        if value not in self._known:
            ways = [w for w in self._ways(value) if w]
            if any(len(w) > 1 for w in ways):
                self.several.add(value)
            if not ways:
                self.lost.add(value)
            self._known[value] = tuple(dict.fromkeys(w[0] for w in ways))
        return self._known[value]

    def _ways(self, value: float) -> list[Sequence[int]]:
        ways: list[Sequence[int]] = []
        if self.how != "bare":
            try:
                ways.append(self.answers.tokens(value))
            except UserError:  # more tokens than can be read, or another prefix
                ways.append(())
        if self.how != "answer":
            ways.append(self.answers.adapter.encode(number_text(value)))
        return ways


def padded(tokens: Sequence[Sequence[tuple[int, ...]]]) -> np.ndarray:
    """Return rows × values × spellings of token ids, −1 where there is none."""
    deep = max((len(t) for row in tokens for t in row), default=1) or 1
    out = np.full((len(tokens), len(tokens[0]) if len(tokens) else 0, deep), -1, np.int64)
    for i, row in enumerate(tokens):
        for j, ids in enumerate(row):
            out[i, j, : len(ids)] = ids
    return out


@dataclass
class Read:
    """What was read in rows. NaN (−1 for ids) where the state is not finite or there is no token.

    Attributes
    ----------
    rank: rows × values; 1 is the most likely, ties count half; of several spellings the best
    prob: rows × values; of several spellings the sum
    entropy: rows, nats
    top: rows × k, ids of the most likely tokens
    hits: values → rows × candidates: would this token be among the first k? (None where no candidates were given)
    """

    rank: np.ndarray
    prob: np.ndarray
    entropy: np.ndarray
    top: np.ndarray
    hits: list[np.ndarray]


class Readout:
    """Logits of states through the model's own last norm (where it has not been applied) and unembedding."""

    def __init__(self, net: Network, normed: bool, top: int, memory: int) -> None:
        self.net, self.normed, self.top = net, normed, top
        self.rows = int(np.clip(memory // (4 * _COPIES * net.info.vocab_size), 1, 1024))

    def logits(self, states: np.ndarray) -> torch.Tensor:
        """Rows × width → rows × vocabulary, fp32, on the model's device."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(states)).to(self.net.device, self.net.dtype)
        return self.net.logits(x if self.normed else self.net.normalise(x))

    def read(self, states: np.ndarray, tokens: np.ndarray, candidates: Sequence[np.ndarray] = ()) -> Read:
        """Read rows × width of states.

        Parameters
        ----------
        tokens: rows × values × spellings of ids, −1 for none
        candidates: for each value, candidates × spellings of ids
        """
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(states), self.rows):
                rows = slice(start, start + self.rows)
                parts.append(self._batch(states[rows], tokens[rows], candidates))
        if not parts:
            parts = [Read(np.empty(tokens.shape[:2]), np.empty(tokens.shape[:2]), np.empty(0), np.empty((0, self.top), np.int64), [])]
        hits = [np.concatenate(h) for h in zip(*(p.hits for p in parts), strict=True)]
        joined = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("rank", "prob", "entropy", "top")}
        return Read(**joined, hits=hits)

    def first(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows × k ids of the most likely tokens and their probabilities; −1 and NaN where a state is not finite."""
        import torch

        ids, probabilities = [np.empty((0, self.top), np.int64)], [np.empty((0, self.top))]
        with torch.inference_mode():
            for start in range(0, len(states), self.rows):
                part = states[start : start + self.rows]
                absent = ~np.isfinite(part).all(1)[:, None]
                found = torch.log_softmax(self.logits(np.where(absent, np.float32(0), part)), 1).topk(min(self.top, self.net.info.vocab_size), 1)
                ids.append(np.where(absent, -1, found.indices.cpu().numpy()))
                probabilities.append(np.where(absent, np.nan, found.values.double().exp().cpu().numpy()))
        return np.concatenate(ids[len(ids) > 1 :]), np.concatenate(probabilities[len(probabilities) > 1 :])

    def _batch(self, states: np.ndarray, tokens: np.ndarray, candidates: Sequence[np.ndarray]) -> Read:
        import torch

        absent = ~np.isfinite(states).all(1)
        logits = self.logits(np.where(absent[:, None], np.float32(0), states))
        ids = torch.from_numpy(np.maximum(tokens, 0)).to(logits.device)
        own = logits.gather(1, ids.flatten(1)).view(ids.shape)
        lse = torch.logsumexp(logits, 1)
        none = torch.from_numpy(tokens < 0).to(logits.device)
        rank = torch.stack([_ranks(logits, own[:, v], none[:, v]) for v in range(tokens.shape[1])], 1) if tokens.shape[1] else own.new_empty(own.shape[:2])
        prob = (own - lse[:, None, None]).exp().masked_fill(none, 0.0).sum(-1)
        log_p = logits - lse[:, None]
        entropy = -(log_p.exp() * log_p).sum(1)
        k = min(self.top, logits.shape[1])
        # a token whose rank is at most k has fewer than 2k tokens at or above it that matter: see _within
        first = logits.topk(min(2 * k, logits.shape[1]), 1)
        hits = [_within(logits, first.values, torch.from_numpy(c).to(logits.device), k).cpu().numpy() for c in candidates]
        for h in hits:
            h[absent] = False
        undefined = absent[:, None] | (tokens < 0).all(2)
        return Read(
            np.where(undefined, np.nan, rank.double().cpu().numpy()), np.where(undefined, np.nan, prob.double().cpu().numpy()),
            np.where(absent, np.nan, entropy.double().cpu().numpy()), np.where(absent[:, None], -1, first.indices[:, :k].cpu().numpy()), hits,
        )  # fmt: skip


def _ranks(logits: torch.Tensor, own: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
    """Rows × spellings of logits → the best spelling's rank among the whole vocabulary, ties counted half."""
    import torch

    best = own.masked_fill(none, -torch.inf).amax(1, keepdim=True)
    return 1.0 + (logits > best).sum(1) + 0.5 * ((logits == best).sum(1) - 1)


def _within(logits: torch.Tensor, first: torch.Tensor, candidates: torch.Tensor, k: int) -> torch.Tensor:
    """Say for each row and candidate (candidates × spellings) whether its rank is at most k.

    ``first`` holds the 2k largest logits: with g above a token and e equal to it (itself among them), its rank 1 + g + (e − 1)/2
    is at most k only if g + e ≤ 2k − 1 − g, so that all of them are among these.
    """
    import torch

    own = logits[:, candidates.clamp_min(0).flatten()].view(len(logits), *candidates.shape)
    best = own.masked_fill(candidates < 0, -torch.inf).amax(2)
    above = (first[:, None] > best[..., None]).sum(2)
    equal = (first[:, None] == best[..., None]).sum(2)
    return (equal > 0) & (1.0 + above + 0.5 * (equal - 1) <= k)
