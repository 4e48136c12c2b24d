"""What a tuned lens is trained to say: the last layer's readout at the same step, or the answer's distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from codi_engine.core.errors import UserError

if TYPE_CHECKING:
    from codi_engine.core.plugin import Data
    from codi_engine.core.rollout.network import Network
    from codi_engine.core.runs.results import Run
    from codi_engine.plugins.analyses.readout import Readout
    from codi_engine.plugins.analyses.states import States

_LATENT = "latent_out"
#: prompts that run together
_PROMPTS = 16


class Goal(Protocol):
    """The target's distribution of every cell at a step."""

    def at(self, step: int) -> Callable[[np.ndarray], torch.Tensor]:
        """Return numbers of cells → cells × vocabulary of log-probabilities."""

    def first(self, step: int) -> np.ndarray:
        """Return every cell's most likely token; −1 where there is no state."""


class _Latents:
    """The readout of the latents themselves: cells × width of ``normed`` states per step (or not normed, from the last layer)."""

    def __init__(self, source: States, layer: int | None, cells: np.ndarray, readout: Readout) -> None:
        self._source, self._layer, self._cells, self._readout = source, layer, cells, readout

    def _states(self, step: int) -> np.ndarray:
        row = 0 if self._layer is None else self._source.layers.index(self._layer)
        number = row * self._source.shape[1] + self._source.places.index(step)
        values: np.ndarray = self._source.read(self._cells, [number])[0]
        return values

    def at(self, step: int) -> Callable[[np.ndarray], torch.Tensor]:
        states = np.nan_to_num(self._states(step))

        def targets(rows: np.ndarray) -> torch.Tensor:
            with torch.no_grad():
                return torch.log_softmax(self._readout.logits(states[rows]), 1)

        return targets

    def first(self, step: int) -> np.ndarray:
        return self._readout.first(self._states(step))[0][:, 0]


class _AnswerGoal:
    """The distribution where the answer's number is predicted, the same at every step: cells × vocabulary."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = torch.log_softmax(logits, 1)

    def at(self, step: int) -> Callable[[np.ndarray], torch.Tensor]:
        return lambda rows: self._logits[torch.from_numpy(rows).to(self._logits.device)]

    def first(self, step: int) -> np.ndarray:
        found: np.ndarray = self._logits.argmax(1).cpu().numpy()
        return found


def goal(target: str, run: Run, states: States, data: Data, net: Network, readout: Readout, prefix: str | None, who: str) -> Goal:
    """Return the target of the cells of ``states``.

    Raises
    ------
    UserError: neither latents nor the last layer were captured (``latent``)
    """
    if target == "answer":
        return _AnswerGoal(_answers(run, states, data, net, prefix))
    return _latents(run, states, net, readout, who)


def _latents(run: Run, states: States, net: Network, readout: Readout, who: str) -> Goal:
    from codi_engine.plugins.analyses.readout import Readout as Reader
    from codi_engine.plugins.analyses.states import States as Captured

    if f"activations/{_LATENT}/value" in run.store.arrays:
        source = Captured(run, _LATENT, False, who)
        where = {int(slot): i for i, slot in enumerate(source.slots)}
        if all(int(s) in where for s in states.slots):
            return _Latents(source, None, np.array([where[int(s)] for s in states.slots]), Reader(net, True, 1, 1 << 28))
    last = net.info.layers - 1
    if last not in states.layers or states.site is None or states.site.component != "resid_post":
        raise UserError(f"{who}: target: latent needs the latents themselves; add capture: [latent_out] and run it again")
    return _Latents(states, last, np.arange(len(states.frame)), Reader(net, False, 1, 1 << 28))


def _answers(run: Run, states: States, data: Data, net: Network, prefix: str | None) -> torch.Tensor:
    """Run the cells' prompts unedited once more: cells × vocabulary of logits where the number is predicted."""
    from codi_engine.core.rollout.rollout import Rollout, Task, Want
    from codi_engine.core.running.reading import Answers

    adapter = net.adapter
    known = {e.id: e for e in (*data.pool, *data.examples)}
    chat = adapter.chat if (run.experiment.get("data") or {}).get("chat_template") else None
    variants = states.frame["variant"].astype(str) if "variant" in states.frame else ["main"] * len(states.frame)
    texts = [known[str(e)].prompts[v].text for e, v in zip(states.frame["example"], variants, strict=True)]
    distinct = list(dict.fromkeys(texts))
    ids = [tuple(adapter.encode_prompt(t if chat is None else chat(t))) for t in distinct]
    want, rollout = Want(generate=False, first=False, prefix=Answers(adapter, prefix).prefix), Rollout(net)
    parts = []
    for start in range(0, len(ids), _PROMPTS):
        some = ids[start : start + _PROMPTS]
        parts.append(rollout.run(some, [Task(i) for i in range(len(some))], want).number_logits.clone())
    row = {text: i for i, text in enumerate(distinct)}
    return torch.cat(parts)[[row[t] for t in texts]]
