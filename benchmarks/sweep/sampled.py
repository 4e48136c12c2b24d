"""Workload C: sampled generation with an edit of one SAE feature and capture of codes; inputs, and the engine's way.

One prompt, some trials of each of six conditions, which set one feature of the middle layer to a value of their own at the prompt's
last token and every generated one (its reconstruction error is kept); 500 features of each of four layers are captured at the same
tokens, after the edit, and averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from codi_engine.core.experiment import CodeSpec
from codi_engine.core.planning.conditions import Condition
from codi_engine.core.planning.plan import Cell
from codi_engine.core.rollout.editing import Editor, Placed
from codi_engine.core.rollout.rollout import Want
from codi_engine.core.rollout.sampling import Sampler
from codi_engine.core.rollout.sources import Sources
from codi_engine.core.running.codes import CodeCapture, CodeReader
from codi_engine.core.sae import SAE
from codi_engine.core.saestore import SaeStore
from codi_engine.core.sites import Site
from codi_engine.plugins.interventions.sae import Sae, SaeOptions

from .models import Models, blocks_of
from .timing import Pass

TOKENS, SEED = 40, 5
SAMPLER = Sampler(temperature=0.7)
NAME = "random"


class Held(SaeStore):
    """Autoencoders made here in place of those in files."""

    def __init__(self, saes: Mapping[int, SAE]) -> None:
        self.saes = saes

    def get(self, path: str, layer: int | None = None, width: int | None = None) -> SAE:
        assert layer is not None
        return self.saes[layer]


class Whole(SAE):
    """An autoencoder that does not know that its features are independent."""

    @property
    def separable(self) -> bool:
        return False


class Sampled:
    """Inputs of the workload.

    Parameters
    ----------
    trials, conditions, new: how many of each, and how many tokens each text has
    features, captured: of every autoencoder, and how many of them are captured
    rows: most cells of one batch of the engine
    """

    def __init__(
        self, models: Models, trials: int = 30, conditions: int = 6, new: int = 30, features: int = 8192, captured: int = 500, rows: int = 256
    ) -> None:
        self.models, self.trials, self.conditions, self.new, self.rows = models, trials, conditions, new, rows
        shape, generator = models.shape, torch.Generator().manual_seed(9)
        self.prompt = torch.randint(0, shape.vocabulary, (TOKENS,), generator=generator).tolist()
        self.layer = shape.layers // 2
        self.layers = sorted({self.layer - 1, self.layer, min(self.layer + 1, shape.layers - 1), shape.layers - 1})
        sizes = self._sizes()
        self.saes = {layer: self._sae(features, layer, sizes[layer], generator) for layer in self.layers}
        chosen = {layer: torch.randperm(features, generator=generator)[:captured].sort().values for layer in self.layers}
        self.chosen = {layer: indices.to(models.device) for layer, indices in chosen.items()}
        self.feature = features // 7
        self.values = torch.linspace(0, 5, conditions, device=models.device)
        self.cells = [(c, t) for c in range(conditions) for t in range(trials)]

    def _sizes(self) -> dict[int, float]:
        """Return the root mean square of each captured layer's states over the prompt, so that codes are of the size that trained ones have."""
        model, seen = self.models.fresh(), {}
        for layer in self.layers:
            blocks_of(model)[layer].register_forward_hook(lambda _, __, out, layer=layer: seen.update({layer: float(out.float().pow(2).mean()) ** 0.5}))
        model(torch.tensor([self.prompt], device=self.models.device), use_cache=False)
        return seen

    def _sae(self, features: int, layer: int, size: float, generator: torch.Generator) -> SAE:
        """Return a random autoencoder of which about 2 % of the codes are not zero; a code of 5 is decoded to as much as a state."""
        width = self.models.shape.width
        encoder, decoder = torch.randn(width, features, generator=generator), torch.randn(features, width, generator=generator)
        bias = torch.full((features,), -2.0)
        return SAE(NAME, f"layer {layer}", encoder / width**0.5 / size, bias, decoder * size / 5, torch.zeros(width), "relu").to(self.models.device)


class Engine:
    """The workload as the engine runs it: tasks from its editor, rows of a batch sampled each by its own uniforms, codes by its observer.

    ``whole``: all features are encoded where one is edited or some are captured, as autoencoders of top-k kinds need it.
    """

    def __init__(self, work: Sampled, rows: int | None = None, whole: bool = False, **options: Any) -> None:
        self.work, self.rows = work, rows or work.rows
        self.rollout = work.models.rollout(**options)
        self.store = Held(
            {layer: Whole(**{f.name: getattr(sae, f.name) for f in fields(sae) if f.init}) for layer, sae in work.saes.items()} if whole else work.saes
        )
        features = {layer: tuple(chosen.tolist()) for layer, chosen in work.chosen.items()}
        self.capture = CodeCapture(CodeSpec(sae=NAME, reduce="mean"), "resid_post", features)
        self.conditions = [self._condition(i, value) for i, value in enumerate(work.values.tolist())]

    def _condition(self, number: int, value: float) -> Condition:
        options = {"sae": NAME, "feature": self.work.feature, "mode": "set", "value": value, "error": "keep"}
        site = Site("resid_post", self.work.layer)
        return Condition(f"set {number}", Sae, options, site, "answer", "main", "main", "propagate", None, {}, {"layer": (self.work.layer,)}, "last")

    def editor(self) -> Editor:
        """Return the engine's editor of these conditions."""
        sources = Sources(_nothing, _nothing)
        sources.saes = self.store

        def build(condition: Condition, options: Mapping[str, Any]) -> Sae:
            made = Sae(SaeOptions(**options))
            made.prepare(sources)
            return made

        return Editor(self.rollout.net, self.conditions, build, sources, [TOKENS], SEED)

    def placed(self, cells: Sequence[tuple[int, int]]) -> list[Placed]:
        values = {"layer": (self.work.layer,)}
        return [Placed(Cell("prompt", c, values, t, f"{c}/{t}"), 0, 0, None, 0) for c, t in cells]

    def run(self, every: int = 1, edit: bool = True, capture: bool = True, greedy: bool = False) -> Pass:
        """Generate all cells in batches; without ``edit`` or ``capture`` the same random numbers draw unedited texts, nothing is kept."""
        work, done = self.work, Pass()
        editor = self.editor()
        for start in range(0, len(work.cells[::every]), self.rows):
            cells = work.cells[::every][start : start + self.rows]
            tasks = editor.tasks(self.placed(cells), {0: 0})
            tasks = tasks if edit else [replace(t, edits={}) for t in tasks]
            reader = CodeReader(self.capture, self.store, self.rollout.net.device)
            sampler = None if greedy else SAMPLER
            want = Want(generate=True, read=False, first=False, max_new_tokens=work.new, sampler=sampler, observers=(reader,) if capture else ())
            produced = self.rollout.run([work.prompt], tasks, want, editor.apply)
            done.tokens.update(zip(cells, produced.tokens, strict=True))
            if capture:
                done.kept.update(zip(cells, torch.from_numpy(reader.codes()), strict=True))
        return done

    def key(self, cell: tuple[int, int]) -> int:
        """Return the key of a cell's random numbers."""
        return self.editor().tasks(self.placed([cell]), {0: 0})[0].key


def _nothing(*_: Any) -> Any:
    raise RuntimeError("an SAE edit takes nothing from the baseline")
