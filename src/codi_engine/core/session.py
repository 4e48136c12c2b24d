"""By hand on one problem: the same rollout as a sweep, for exploring.

>>> m = codi_engine.load("demo")                                    # doctest: +SKIP
>>> m.generate(question).text                                       # doctest: +SKIP
>>> m.capture(question, ["latent_out", "resid_post@latent"])        # doctest: +SKIP
>>> m.edit(question, [At("resid_post.2@latent[3]", "zero")]).answer # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from codi_engine.core.errors import UserError
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Produced, Rollout, Task, Want
from codi_engine.core.rollout.selftest import self_test
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.running.captures import captured, merge, parse_captures
from codi_engine.core.running.reading import Answers
from codi_engine.core.sites import Phase, Site, parse_site
from codi_engine.core.solutions.answers import extract

if TYPE_CHECKING:
    import xarray as xr

    from codi_engine.core.model import ModelAdapter


@dataclass(frozen=True)
class At:
    """One edit by hand.

    ``value`` is what stands at the site afterwards: a vector (width), a number, ``"zero"``, a function of the values
    (rows × width → rows × width), or with ``source`` the value that another question has at the same site.
    ``heads`` limits the edit to some heads of attn_z, q, k or v.
    """

    site: str
    value: Any = None
    source: str | None = None
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Generated:
    """What one question gave. ``logits``: vocabulary, fp32, where the answer's number is predicted."""

    text: str
    answer: float | None
    tokens: list[int]
    logits: torch.Tensor = field(repr=False)


class Session:
    """A loaded model to explore by hand. Made by :func:`load`."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter
        self.net = Network(adapter)
        self.self_test = self_test(self.net)
        self.rollout = Rollout(self.net)
        self.answers = Answers(adapter, None)

    def __repr__(self) -> str:
        info = self.adapter.info
        return f"<{info.family}, {info.layers} layers × {info.width}, {info.latents} latent steps, {info.dtype} on {info.device}>"

    @property
    def sites(self) -> list[str]:
        """Components that this model has."""
        return sorted(self.net.components)

    def generate(self, question: str, max_new_tokens: int = 64) -> Generated:
        """Answer a question unedited, greedily."""
        return self._generated(self._run([question], [Task(0)], max_new_tokens), 0)

    def capture(self, question: str, sites: Sequence[str] | str) -> dict[str, xr.DataArray]:
        """Return site → labelled values ([layer ×] step or position × width) of the unedited run."""
        import xarray as xr

        sites = [sites] if isinstance(sites, str) else sites
        ids = [self._encoded(question)]
        captures = parse_captures(sites, self.adapter.info, self.net.components, len(ids[0]), "capture", [f"capture[{n}]" for n in range(len(sites))])
        wanted = merge(captures, ())
        answered = any(phase == "answer" for c in captures for phase, _ in c.places)
        want = Want(wanted, generate=False, read=False, first=answered)
        produced = self.rollout.run(ids, [Task(0)], want)
        import numpy as np

        out = {}
        for name, c in zip(sites, captures, strict=True):
            values = captured(c, produced, wanted, np.array([len(ids[0])]))[0]
            out[name] = xr.DataArray(values, dims=c.dims[1:], coords=c.coords(), name=name)
        return out

    def edit(
        self, question: str, edits: At | Sequence[At | Mapping[str, Any]], max_new_tokens: int = 64,
        downstream: Literal["propagate", "freeze"] = "propagate",
    ) -> Generated:  # fmt: skip
        """Answer a question with edits. ``downstream: freeze`` pins the latents after the first edited step.

        Raises
        ------
        UserError: unknown site, a value of another width, an edit without value and source
        """
        given = [e if isinstance(e, At) else At(**e) for e in ([edits] if isinstance(edits, At) else edits)]
        ids = self._encoded(question)
        placed: list[tuple[At, Site, Phase, int]] = []
        for number, at in enumerate(given):
            placed += [(at, *rest) for rest in self._places(at, number, len(ids))]
        values = [self._source(at, site, phase, place) for at, site, phase, place in placed]
        tasks: dict[Phase, list[Edit]] = {}
        for group, (_, site, phase, place) in enumerate(placed):
            tasks.setdefault(phase, []).append(Edit(site, place, group, group))
        if downstream == "freeze":
            self._freeze(question, placed, tasks, values)

        def apply(group: int, site: Site, place: int, cells: Sequence[int], old: torch.Tensor) -> torch.Tensor:
            if group >= len(placed):
                frozen = values[group]
                assert frozen is not None
                return frozen.to(old).expand_as(old)
            return _new_value(placed[group][0], values[group], old, self.adapter.info.head_dim)

        for phase in tasks:
            tasks[phase].sort(key=lambda e: (e.place, e.site.entry(self.adapter.info.layers)))
        produced = self._run([question], [Task(0, tasks)], max_new_tokens, apply)
        return self._generated(produced, 0)

    # ------------------------------------------------------------------------------------------- pieces

    def _encoded(self, question: object, what: str = "question") -> list[int]:
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{what}: give a text that is not empty; got {question!r}")
        return self.adapter.encode_prompt(question)

    def _places(self, at: At, number: int, length: int) -> list[tuple[Site, Phase, int]]:
        where = f"edits[{number}].site"
        info = self.adapter.info
        if at.value is None and at.source is None:
            raise UserError(f"edits[{number}]: give a value or a source question")
        captures = parse_captures([at.site], info, self.net.components, length, where, [where])
        site = parse_site(at.site, where, info.layers)
        if site.component == "logits":
            raise UserError(f"{where}: logits are read, not edited")
        layers = captures[0].layers if site.layered else (None,)
        return [(Site(site.component, layer), phase, place) for phase, place in captures[0].places for layer in layers]

    def _source(self, at: At, site: Site, phase: Phase, place: int) -> torch.Tensor | None:
        if at.source is None:
            return None
        ids = [self._encoded(at.source, "source")]
        want = Want({(site.component, phase): ((site.layer,), (place,))}, generate=False, read=phase == "answer", first=False, prefix=self.answers.prefix)
        return self.rollout.run(ids, [Task(0)], want).captures[site.component, site.layer, phase][0, 0]

    def _freeze(self, question: str, placed: Sequence[Any], tasks: dict[Phase, list[Edit]], values: list[Any]) -> None:
        steps = [place for _, _, phase, place in placed if phase == "latent"]
        first = 0 if any(phase == "prompt" for _, _, phase, _ in placed) else min(steps, default=self.adapter.info.latents) + 1
        edited = {place for _, site, phase, place in placed if phase == "latent" and site.component == "latent_in"}
        for step in range(first, self.adapter.info.latents):
            if step not in edited:
                values.append(self._source(At("latent_in", source=question), Site("latent_in"), "latent", step))
                tasks.setdefault("latent", []).append(Edit(Site("latent_in"), step, len(values) - 1, "frozen"))

    def _run(self, questions: Sequence[str], tasks: Sequence[Task], max_new_tokens: int, apply: Any = None) -> Produced:
        ids = [self._encoded(q) for q in questions]
        want = Want(prefix=self.answers.prefix, max_new_tokens=max_new_tokens)
        return self.rollout.run(ids, tasks, want) if apply is None else self.rollout.run(ids, tasks, want, apply)

    def _generated(self, produced: Produced, row: int) -> Generated:
        tokens = produced.tokens[row]
        text = self.adapter.decode([t for t in tokens if t not in self.adapter.stop_ids])
        value = extract(text).value
        answer = None if value is None or value != value else float(value)
        return Generated(text, answer, tokens, produced.number_logits[row])


def _new_value(at: At, source: torch.Tensor | None, old: torch.Tensor, head_dim: int) -> torch.Tensor:
    if source is not None:
        new = source.to(old).expand_as(old)
    elif at.value == "zero" if isinstance(at.value, str) else False:
        new = torch.zeros_like(old)
    elif callable(at.value):
        new = at.value(old)
    elif isinstance(at.value, str):
        raise UserError(f"{at.site}: value '{at.value}' is neither a vector nor 'zero'")
    else:
        try:
            new = torch.as_tensor(at.value, dtype=old.dtype, device=old.device).expand_as(old)
        except (RuntimeError, TypeError, ValueError) as error:
            said = f"shape {list(at.value.shape)}" if hasattr(at.value, "shape") else repr(at.value)[:60]
            raise UserError(f"{at.site}: the value ({said}) does not fit the site, {old.shape[-1]} numbers wide") from error
    if new.shape != old.shape:
        raise UserError(f"{at.site}: the value has shape {list(new.shape)}; the site has {list(old.shape)}")
    if at.heads is None:
        return new
    out = old.clone()
    for head in at.heads:
        out[:, head * head_dim : (head + 1) * head_dim] = new[:, head * head_dim : (head + 1) * head_dim]
    return out


def load(checkpoint: str | Path = "demo", *, plugin: str = "codi", **options: Any) -> Session:
    """Load a model to explore by hand.

    Parameters
    ----------
    checkpoint: ``demo``, a directory or a Hub id
    plugin: ``codi``, ``coconut``, ``causal_lm`` or a third party's
    options: the plugin's options (``base``, ``dtype``, ``device`` …)
    """
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.returned import loaded_model

    name = "path" if plugin == "causal_lm" else "checkpoint"
    model = plugin_manager().build("model", {"plugin": plugin, name: str(checkpoint), **options}, where="load", source="load()")
    return Session(loaded_model(model))
