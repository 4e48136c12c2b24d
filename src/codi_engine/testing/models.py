"""What a model must be: described without weights, the same in any batch, and edited exactly where an address says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.session import At, Session
from codi_engine.core.sites import Site
from codi_engine.testing.suite import Suite, demand

#: how far logits may differ between a batch and a row by itself
CLOSE = 2e-4
WORDS = {"missing": "that is missing", "extra": "too many", "shape": "of another shape"}
DAMAGES = tuple(WORDS)


class ModelSuite(Suite):
    """Conformance of a model.

    Override :meth:`written` to write a tiny checkpoint and return the options that load it (``tiny_codi`` and the others
    of :mod:`codi_engine.testing` make some); without, the options are used as they are.

    Attributes
    ----------
    questions: put before it, of different lengths
    new: tokens that are generated
    """

    kind = "model"
    questions: ClassVar[Sequence[str]] = ("there are 3 apples", "there are 12 pears and 40 apples and 7 pears", "apples 9")
    new: ClassVar[int] = 4
    _sessions: ClassVar[dict[Any, tuple[Any, Session]]] = {}

    def written(self, setting: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """Return the options of a model on disk; called once per setting."""
        return setting

    @pytest.fixture
    def loaded(self, setting: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Session]:
        """Return the plugin and a session of its model, made once per setting."""
        key = (type(self), repr(sorted(setting.items())))
        if key not in self._sessions:
            model = self.build(self.written(setting, tmp_path_factory.mktemp("model")))
            self._sessions[key] = (model, Session(model.load()))
        return self._sessions[key]

    def places(self, session: Session) -> list[str]:
        """Return one address per component that can be edited: at the last layer, in the prompt and in the latents."""
        info = session.adapter.info
        phases = ["bot" if info.latents else "prompt[-1]", *(["latent[1]"] if info.latents else [])]
        layered = [c for c in session.sites if Site(c).layered]
        return [f"{c}.{info.layers - 1}@{p}" for c in layered for p in phases] + (["latent_in@latent[1]"] if info.latents else [])

    def test_it_is_described_without_weights_as_it_is(self, loaded: tuple[Any, Session]) -> None:
        model, session = loaded
        described, real = model.describe(), session.adapter.info
        apart = {f.name: (getattr(described, f.name), getattr(real, f.name)) for f in fields(real) if getattr(described, f.name) != getattr(real, f.name)}
        demand(not apart, f"describe() must say what load() gives; described and loaded differ: {apart}")

    def test_its_weights_are_audited(self, loaded: tuple[Any, Session]) -> None:
        adapter = loaded[1].adapter
        demand(not adapter.network.training, "the network must be in eval mode")
        bad = [name for name, p in adapter.network.named_parameters() if not bool(np.isfinite(p.detach().float().cpu().numpy()).all())]
        demand(not bad, f"every weight must come from the checkpoint; not finite: {bad[:3]}")
        demand(adapter.digest, "digest must be stated: runs of other weights are told apart by it")

    def test_a_row_is_the_same_in_any_batch(self, loaded: tuple[Any, Session]) -> None:
        """Prompts of different lengths are padded on the left."""
        session = loaded[1]
        ids = [session.adapter.encode_prompt(q) for q in self.questions]
        want = Want(prefix=session.answers.prefix, max_new_tokens=self.new)
        rollout = Rollout(session.rollout.net, cache_bytes=0)  # a prompt that is kept would not be computed again
        whole = rollout.run(ids, [Task(n) for n in range(len(ids))], want)
        for row, alone in enumerate(rollout.run([i], [Task(0)], want) for i in ids):
            gap = float((whole.number_logits[row] - alone.number_logits[0]).abs().max())
            demand(gap <= CLOSE, f"logits of question {row} differ by {gap:.2g} between the batch and itself alone; {CLOSE:g} is allowed")
            demand(whole.tokens[row] == alone.tokens[0], f"question {row} gets other tokens in the batch than alone")

    def test_a_value_put_back_where_it_stands_changes_nothing(self, loaded: tuple[Any, Session]) -> None:
        session = loaded[1]
        question = self.questions[1]
        before = session.generate(question, self.new)
        for place in self.places(session):
            after = session.edit(question, [At(place, source=question)], self.new)
            gap = float((after.logits - before.logits).abs().max())
            demand(gap <= CLOSE and after.tokens == before.tokens, f"{place}: its own value put back must change nothing; logits moved by {gap:.2g}")

    def test_an_edit_fires_where_it_is_addressed_and_capture_sees_it_there(self, loaded: tuple[Any, Session]) -> None:
        session = loaded[1]
        question = self.questions[1]
        for place in self.places(session):
            seen: list[np.ndarray] = []

            def change(values: Any, seen: list[np.ndarray] = seen) -> Any:
                seen.append(values.float().cpu().numpy().copy())
                return values + 1

            session.edit(question, [At(place, change)], self.new)
            demand(len(seen) == 1 and len(seen[0]) == 1, f"{place}: an edit of one place must fire once; it fired {len(seen)} times")
            captured = np.asarray(session.capture(question, [place])[place]).reshape(-1)
            gap = float(np.abs(captured - seen[0].reshape(-1)).max())
            demand(gap <= CLOSE, f"{place}: what is captured there must be what an edit there sees; they differ by {gap:.2g}")

    def weights(self, folder: Path) -> Path | None:
        """Return the file of weights of a checkpoint that :meth:`written` wrote below ``folder``; None where there is none to damage."""
        found = [p for p in folder.rglob("*") if p.is_file() and (p.suffix in (".safetensors", ".bin", ".pt", ".pth") or p.name.startswith("checkpoint"))]
        return max(found, key=lambda p: p.stat().st_size, default=None)

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_checkpoint_is_refused(self, setting: Mapping[str, Any], tmp_path: Path, damage: str) -> None:
        """One key missing, one too many, or one of another shape: no number may come of it."""
        options = self.written(setting, tmp_path)
        file = self.weights(tmp_path)
        if file is None:
            pytest.skip("no checkpoint is written: there is nothing to damage")
        name = damaged(file, damage)
        try:
            self.build(options).load()
        except UserError as error:
            demand(len(str(error).splitlines()) <= 2, f"an error must be one or two lines; it is: {error}")
            known = ".".join(name.split(".")[-3:]) in str(error)
            demand(known or damage == "shape", f"the error must name the {damage} key {name}; it says: {error}")
            return
        raise AssertionError(f"load() must refuse a checkpoint with a key {WORDS[damage]} ({name}) with a UserError: what it computes is of another model")

    def test_texts_survive_encoding(self, loaded: tuple[Any, Session]) -> None:
        adapter = loaded[1].adapter
        for question in self.questions:
            text = adapter.decode(adapter.encode(question))
            demand(text.split() == question.split(), f"decode(encode(text)) must give the text: {question!r} became {text!r}")


def damaged(file: Path, damage: str) -> str:
    """Damage one key of a file of weights; returns its name. A matrix that is no embedding: those may be tied, and named once."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    safe = file.suffix == ".safetensors"
    state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    name: str = next(k for k, v in state.items() if v.ndim == 2 and not any(part in k for part in ("emb", "wte", "wpe", "head")))
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:-1].clone()
    else:
        name = "of.another.model"
        state[name] = torch.zeros(2)
    if safe:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        save_file(state, file, metadata=about)
    else:
        torch.save(state, file)
    return name
