"""``geometry``: how the latent states of unedited runs move, step by step, by correctness of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, Options

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine import Run
    from codi_engine.core.runs.work import Work


class GeometryOptions(Options):
    """``site``: captured states of latent steps, of one layer where it has layers: ``resid_post.2@latent``.

    ``q``, ``confidence``: of the corrected tests, of intervals. ``draws``, ``seed``: of the comparison of dimensions at equal n.
    """

    site: str = "latent_out"
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    draws: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0)


class Geometry(Analysis[GeometryOptions]):
    """Trajectory geometry of unedited latents: step change, direction, cosine between all steps, effective dimension.

    By correctness of the answer where the run has ``accuracy``. A cosine near 1 between all steps says that the latents have
    collapsed into one state (SIM-CoT, 2509.20317). The unit of inference is the example.
    """

    name = "geometry"
    Options = GeometryOptions

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine_geometry import report, tables

        options = self.options
        states, steps, examples, correct = self._read(runs[0])
        groups = tables.groups(correct)
        found = {
            "steps": tables.step_table(states, steps, examples, groups, options.confidence),
            "pairs": tables.pair_table(states, steps, examples, groups, options.confidence),
            "dimension": tables.dimension_table(states, steps, groups, options),
            "contrast": tables.contrast_table(states, steps, examples, correct, options),
        }
        return AnalysisResult(found, self.draw(found, {}), report.summary(found, options.site, options.q))

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> dict[str, Figure]:
        """Return ``movement``, ``cosines`` and ``dimension``, from the tables alone."""
        from codi_engine_geometry import pictures

        return pictures.draw(tables)

    def _read(self, run: Run) -> tuple[np.ndarray, list[int], np.ndarray, np.ndarray | None]:
        """Return cells × states × width, the states' labels (−1: at bot), each cell's example, and whether its answer is right."""
        import numpy as np

        data = run.activations(self.options.site)
        if "step" not in data.dims or "layer" in data.dims:
            raise UserError(f"{self.name}: site: '{self.options.site}' must be states of latent steps, of one layer; choose latent_out or resid_post.0@latent")
        values = np.asarray(data.transpose(data.dims[0], "step", "width").values)
        steps = [int(s) for s in data["step"].values]
        if len(steps) < 3:
            raise UserError(f"{self.name}: site: a trajectory needs three states or more; '{self.options.site}' has {len(steps)}")
        keys = [k for k in ("example", "variant", "trial") if k in data.coords and k in run.cells]
        labels = [tuple(str(v) for v in row) for row in zip(*(data[k].values for k in keys), strict=True)]
        right = None
        if "accuracy" in run.metrics:
            base = run.baseline
            known = dict(zip(zip(*(base[k].astype(str) for k in keys), strict=True), base["accuracy"].astype(float), strict=True))
            right = np.array([known[label] for label in labels])
        order = np.array(sorted(range(len(labels)), key=lambda i: labels[i]))  # sums in an order of their own
        examples = np.array([label[keys.index("example")] for label in labels])
        there = order[np.isfinite(values[order]).all((1, 2))]
        if len(there) < 2:
            raise UserError(f"{self.name}: {run.path} has {len(there)} unedited trajectories; two are needed")
        return values[there], steps, examples[there], None if right is None else right[there]
