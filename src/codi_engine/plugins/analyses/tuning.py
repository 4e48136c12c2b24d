"""Training of one affine translator: states of a place → states whose readout is a given distribution (tuned lens)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

#: a plain readout this near to the target (nats) has nothing to be trained
NOTHING_TO_LEARN = 1e-6

#: rows × width of states, with a graph → rows × vocabulary of logits
Reads = Callable[[torch.Tensor], torch.Tensor]
#: numbers of rows → rows × vocabulary of log-probabilities, without one
Targets = Callable[[np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class Translator:
    """h ↦ h + h·weight + bias, in float32; all zeros is the plain lens."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Rows × width → rows × width."""
        moved: np.ndarray = (states + states @ self.weight + self.bias).astype(np.float32)
        return moved


@dataclass(frozen=True)
class Fitted:
    """A translator, the penalty it was trained with (infinite: the plain lens was best), and validation KL per penalty, the plain lens first."""

    translator: Translator
    penalty: float
    path: tuple[float, ...]


class Place:
    """The states of one place and what their readout is to be.

    Parameters
    ----------
    states: rows × width
    targets, reads: see above
    batch: rows whose logits are held at once
    """

    def __init__(self, states: np.ndarray, targets: Targets, reads: Reads, batch: int, device: torch.device | str = "cpu") -> None:
        self.targets, self.reads, self.batch = targets, reads, batch
        self.states = torch.from_numpy(np.ascontiguousarray(states, np.float32)).to(device)

    def kl(self, moved: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Return KL(target ‖ readout) of each row, in nats."""
        want = self.targets(rows)
        read = torch.log_softmax(self.reads(moved).float(), 1)
        return (want.exp() * (want - read)).sum(1)

    def divergence(self, translator: Translator | None, rows: np.ndarray) -> np.ndarray:
        """Return KL of each row through a translator (None: the plain lens), in double precision."""
        parts = [np.empty(0)]
        with torch.no_grad():
            for some in self._batches(rows):
                states = self.states[torch.from_numpy(some)]
                moved = states if translator is None else torch.from_numpy(translator(states.cpu().numpy())).to(states)
                parts.append(self.kl(moved, some).double().cpu().numpy())
        return np.concatenate(parts)

    def constant(self, train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return KL(target ‖ mean target of ``train``) of each row: what knowing nothing of the state gives."""
        mean = torch.stack([self.targets(some).double().exp().sum(0) for some in self._batches(train)]).sum(0) / len(train)
        parts = [np.empty(0)]
        for some in self._batches(rows):
            want = self.targets(some).double()
            parts.append((want.exp() * (want - mean.log())).nan_to_num(0.0, posinf=torch.inf).sum(1).cpu().numpy())
        return np.concatenate(parts)

    def fit(self, train: np.ndarray, check: np.ndarray, penalties: Sequence[float], epochs: int) -> Fitted:
        """Train on ``train`` along falling penalties, each from the last one's optimum; the one best on ``check`` is trained again on both.

        Penalties weigh ‖W‖² (Frobenius) of the translator in standardised units against the mean KL in nats; the bias is free.
        """
        plain = float(self.divergence(None, check).mean())
        width = self.states.shape[1]
        nothing = Translator(np.zeros((width, width), np.float32), np.zeros(width, np.float32))
        if plain < NOTHING_TO_LEARN:
            return Fitted(nothing, float("inf"), (plain,))
        scale = _Scale(self.states[torch.from_numpy(train)])
        found, path, start = [nothing], [plain], (torch.zeros(width, width), torch.zeros(width))
        starts = [start]
        for penalty in sorted(penalties, reverse=True):
            start = self._optimum(train, scale, start, penalty, epochs)
            starts.append(start)
            found.append(scale.translator(*start))
            path.append(float(self.divergence(found[-1], check).mean()))
        best = int(np.nanargmin(path))
        if best == 0:
            return Fitted(nothing, float("inf"), tuple(path))
        penalty = sorted(penalties, reverse=True)[best - 1]
        both = np.concatenate([train, check])
        return Fitted(scale.translator(*self._optimum(both, scale, starts[best], penalty, epochs)), penalty, tuple(path))

    def _optimum(
        self, rows: np.ndarray, scale: _Scale, start: tuple[torch.Tensor, torch.Tensor], penalty: float, epochs: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Minimise mean KL + penalty · ‖W‖² by L-BFGS over all rows; deterministic."""
        device = self.states.device
        weight, bias = (t.detach().clone().to(device).requires_grad_(True) for t in start)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=epochs, history_size=10, tolerance_grad=1e-7, tolerance_change=1e-9, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            total = penalty * weight.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            for some in self._batches(rows):
                moved = scale.move(self.states[torch.from_numpy(some)], weight, bias)
                part = self.kl(moved, some).sum() / len(rows)
                part.backward()  # type: ignore[no-untyped-call]
                total = total.detach() + part.detach()
            return total

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return weight.detach().cpu(), bias.detach().cpu()

    def _batches(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]


class _Scale:
    """Units in which a translator is trained: standardised columns in, the place's own size out."""

    def __init__(self, states: torch.Tensor) -> None:
        self.mean = states.mean(0)
        spread = states.std(0, correction=0)
        self.size = float(spread.square().mean().sqrt()) or 1.0
        self.spread = torch.where(spread > 1e-6 * self.size, spread, torch.full_like(spread, self.size))

    def move(self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return states + self.size * ((states - self.mean) / self.spread @ weight + bias)

    def translator(self, weight: torch.Tensor, bias: torch.Tensor) -> Translator:
        """Return the same map in the states' own units."""
        mean, spread = self.mean.double().cpu(), self.spread.double().cpu()
        own = self.size * weight.double() / spread[:, None]
        return Translator(own.float().numpy(), (self.size * bias.double() - mean @ own).float().numpy())
