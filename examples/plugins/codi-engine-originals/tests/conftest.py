"""The package as it is after `pip install`, and small runs of it on the packaged demo model."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from codi_engine import Experiment
from codi_engine.core.runs.results import Run

PACKAGE = "codi-engine-originals"
FIRST = "logits@answer[0]"


@pytest.fixture(scope="module", autouse=True)
def discovered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave an entry point on sys.path as an installer does, where the package is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CODI_ENGINE_PLUGINS", raising=False)
        if not any(e.dist is not None and e.dist.name == PACKAGE for e in importlib.metadata.entry_points(group="codi_engine")):
            folder = tmp_path_factory.mktemp("site")
            info = folder / "codi_engine_originals-0.1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n", encoding="utf-8")
            (info / "entry_points.txt").write_text("[codi_engine]\noriginals = codi_engine_originals\n", encoding="utf-8")
            patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield


Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def make() -> Make:
    """Return a maker of experiments: two problems, the loop of the studies, the first answer token's logits kept."""

    def made(**keys: Any) -> Experiment:
        value: dict[str, Any] = {
            "name": "test",
            "model": {"plugin": "ce-codi", "checkpoint": "demo", "device": "cpu"},
            "data": {"plugin": "demo-problems", "limit": 2},
            "metrics": [{"plugin": "rms_logit_diff", "at": "first"}],
            "capture": [FIRST],
            "generate": {"max_new_tokens": 6},
            "controls": "none",
        }
        return Experiment.from_dict({**value, **keys})

    return made


@pytest.fixture(scope="module")
def run(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Return a runner of such experiments."""

    def ran(**keys: Any) -> Run:
        return make(**keys).run(tmp_path_factory.mktemp("run") / "run").open()

    return ran


@pytest.fixture(scope="module")
def changes() -> Callable[..., np.ndarray]:
    """Return (run, **where) → the largest change of the first logits of each edited cell, against its example's unedited run."""

    def largest(run: Run, **where: Any) -> np.ndarray:
        """Largest change of the first logits of each edited cell, against the same example's unedited run."""
        base, edited = run.activations(FIRST), run.activations(FIRST, edited=True)
        before = {str(e): base.values[i] for i, e in enumerate(base["example"].values)}
        keep = np.ones(edited.sizes["cell"], bool)
        for axis, wanted in where.items():
            keep &= np.array([value == wanted for value in edited[axis].values])
        assert keep.any(), f"no edited cell at {where}"
        pairs = zip(edited.values[keep], edited["example"].values[keep], strict=True)
        return np.array([np.abs(value - before[str(example)]).max() for value, example in pairs])

    return largest
