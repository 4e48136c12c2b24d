"""Workload A by other libraries: TransformerLens, nnsight, pyvene; ``pip install 'codi-engine[peers]'``.

Each is used as its documentation does it for activation patching; a batch holds all pairs. None of them takes part in B, where an edit
has to branch inside a loop of its own over embeddings and caches.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .models import Models, blocks_of
from .patching import POSITIONS, Patching, keep
from .timing import Pass, Spent, measured

LIBRARIES = {"TransformerLens": "transformer_lens", "nnsight": "nnsight", "pyvene": "pyvene"}


def absent() -> list[str]:
    """Return the libraries that are not installed."""
    return [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module) is None]


class _Peer:
    """One library over a model object of its own. Prompts of one length go together; ``every``: every n-th (layer, position)."""

    def __init__(self, work: Patching, last_logits: int) -> None:
        self.work, self.last_logits = work, last_logits

    def run(self, every: int = 1) -> Pass:
        work = self.work
        chosen = work.places[::every]
        done = Pass(factor=len(work.places) / len(chosen))
        base = Spent(gpu=0.0 if work.models.device.type == "cuda" else None)
        for pairs in work.alike():
            values, spent = measured(work.models.device, lambda pairs=pairs: self.unedited(pairs))  # type: ignore[misc]
            base = base.plus(spent)
            self.patch(done, chosen, pairs, values)
        done.base = base
        return done

    def unedited(self, pairs: Sequence[int]) -> Any:
        """Run clean prompts, keep what is patched in, and run the corrupted ones."""
        raise NotImplementedError

    def patch(self, done: Pass, places: Sequence[tuple[int, int]], pairs: Sequence[int], values: Any) -> None:
        """Patch every (layer, position from the end) and keep the last logits."""
        raise NotImplementedError

    def _ids(self, pairs: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.work.ids(self.work.clean, pairs), self.work.ids(self.work.corrupted, pairs)


class TransformerLens(_Peer):
    """``patching.generic_activation_patch``, its loop over a table of layers and positions; it always computes all logits."""

    def __init__(self, work: Patching) -> None:
        super().__init__(work, 0)
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        model = work.models.fresh("eager")
        self.bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config, model_name=work.models.kind).eval()

    def unedited(self, pairs: Sequence[int]) -> Any:
        clean, corrupted = self._ids(pairs)
        _, cache = self.bridge.run_with_cache(clean, names_filter=lambda name: name.endswith(("hook_resid_post", "hook_out")))
        self.bridge(corrupted)
        return cache

    def patch(self, done: Pass, places: Sequence[tuple[int, int]], pairs: Sequence[int], values: Any) -> None:
        import pandas as pd
        import transformer_lens.patching as patching

        patching.tqdm = lambda iterable, *_, **__: iterable
        _, corrupted = self._ids(pairs)
        table = pd.DataFrame([(layer, place + corrupted.shape[1]) for layer, place in places], columns=["layer", "pos"])
        order = iter(places)

        def metric(logits: torch.Tensor) -> torch.Tensor:
            keep(done, *next(order), pairs, logits[:, -1])
            return logits[0, -1, 0]

        patching.generic_activation_patch(self.bridge, corrupted, values, metric, patching.layer_pos_patch_setter, "resid_post", index_df=table)


class Nnsight(_Peer):
    """Traces of transformers' own model. ``invokes``: so many cells per trace, each an invoke of its own; 0: one trace per cell."""

    def __init__(self, work: Patching, last_logits: int = 1, invokes: int = 0) -> None:
        super().__init__(work, last_logits)
        from nnsight.modeling.transformers import TransformersModel

        self.invokes = invokes
        self.model = TransformersModel(work.models.fresh(), task="text-generation", tokenizer=_words(work.models))

    @property
    def _blocks(self) -> Any:
        return self.model.transformer.h if self.work.models.kind == "gpt2" else self.model.model.layers

    @property
    def _options(self) -> dict[str, Any]:
        return {"use_cache": False, "logits_to_keep": self.last_logits}

    def unedited(self, pairs: Sequence[int]) -> Any:
        clean, corrupted = self._ids(pairs)
        blocks, layers = self._blocks, range(self.work.layers)
        with self.model.trace(clean, **self._options):
            values = list().save()  # type: ignore[attr-defined]  # noqa: C408
            for layer in layers:
                values.append(blocks[layer].output[:, -POSITIONS:].clone())
        with self.model.trace(corrupted, **self._options):
            self.model.output.logits[:, -1].save()
        return values

    def patch(self, done: Pass, places: Sequence[tuple[int, int]], pairs: Sequence[int], values: Any) -> None:
        _, corrupted = self._ids(pairs)
        blocks = self._blocks
        if not self.invokes:
            for layer, place in places:
                with self.model.trace(corrupted, **self._options):
                    blocks[layer].output[:, place] = values[layer][:, place]
                    logits = self.model.output.logits[:, -1].save()
                keep(done, layer, place, pairs, logits)
            return
        for start in range(0, len(places), self.invokes):
            some = places[start : start + self.invokes]
            with self.model.trace(**self._options) as tracer:
                kept = list().save()  # type: ignore[attr-defined]  # noqa: C408
                for layer, place in some:
                    with tracer.invoke(corrupted):
                        blocks[layer].output[:, place] = values[layer][:, place]
                        kept.append(self.model.output.logits[:, -1].clone())
            for (layer, place), logits in zip(some, kept, strict=True):
                keep(done, layer, place, pairs, logits)


class Pyvene(_Peer):
    """``IntervenableModel`` with a vanilla intervention on block outputs.

    ``given``: clean values are collected once and handed over; else the source prompt is run at every call, as in most of its examples.
    """

    def __init__(self, work: Patching, given: bool = False) -> None:
        super().__init__(work, 1)
        self.model, self.given = work.models.fresh(), given

    def _inputs(self, ids: torch.Tensor) -> dict[str, Any]:
        return {"input_ids": ids, "use_cache": False, "logits_to_keep": self.last_logits}

    def unedited(self, pairs: Sequence[int]) -> Any:
        clean, corrupted = self._ids(pairs)
        seen: dict[int, torch.Tensor] = {}
        blocks = blocks_of(self.model) if self.given else []
        handles = [block.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out[:, -POSITIONS:].clone()})) for i, block in enumerate(blocks)]
        if self.given:
            self.model(**self._inputs(clean))
        for handle in handles:
            handle.remove()
        self.model(**self._inputs(corrupted))
        return seen

    def patch(self, done: Pass, places: Sequence[tuple[int, int]], pairs: Sequence[int], values: Any) -> None:
        import pyvene

        clean, corrupted = self._ids(pairs)
        made: dict[int, Any] = {}
        for layer, place in places:
            if layer not in made:
                spot = pyvene.RepresentationConfig(layer, "block_output", "pos", 1)
                made[layer] = pyvene.IntervenableModel(pyvene.IntervenableConfig([spot], pyvene.VanillaIntervention), model=self.model)
            source: dict[str, Any]
            if self.given:
                source = {"source_representations": {made[layer].sorted_keys[0]: values[layer][:, place][:, None]}}
            else:
                source = {"sources": [self._inputs(clean)]}
            at = {"sources->base": place + corrupted.shape[1]}
            _, out = made[layer](self._inputs(corrupted), unit_locations=at, **source)
            keep(done, layer, place, pairs, out.logits[:, -1])


def _words(models: Models) -> Any:
    """Return a tokenizer of the vocabulary's size: nnsight will not do without one, and nothing is read by it."""
    from tokenizers import Tokenizer, models as kinds, pre_tokenizers  # noqa: I001
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(kinds.WordLevel({str(i): i for i in range(models.shape.vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")


def every_way(work: Patching) -> dict[str, tuple[str, Callable[[], _Peer]]]:
    """Return name → (library, how to make it)."""
    return {
        "TransformerLens, generic_activation_patch": ("TransformerLens", lambda: TransformerLens(work)),
        "nnsight, a trace per cell of all pairs": ("nnsight", lambda: Nnsight(work)),
        "nnsight, up to 12 invokes per trace": ("nnsight", lambda: Nnsight(work, invokes=12)),
        "pyvene, source run at every call": ("pyvene", lambda: Pyvene(work)),
        "pyvene, clean values handed over": ("pyvene", lambda: Pyvene(work, given=True)),
    }
