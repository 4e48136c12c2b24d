"""The autoencoder without its error term, and codes read one layer below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.runs.results import Run

Ran = Callable[..., Run]
MODEL = {"plugin": "causal_lm", "path": "demo", "device": "cpu"}
PROMPTS = {"plugin": "demo-prompts", "limit": 2}
EXAMPLE = Path(__file__).parents[1] / "examples" / "001-feature-patching.yaml"


def sae(**options: Any) -> dict[str, Any]:
    return {"plugin": "sae", "sae": "demo", "site": "resid_post", "layer": 2, "tokens": "last", **options}


def test_without_the_error_term_nothing_edited_is_an_effect(run: Ran, changes: Callable[..., np.ndarray]) -> None:
    conditions = {error: {"intervention": sae(feature=88, mode="scale", value=1.0, error=error)} for error in ("drop", "keep")}
    both = run(model=MODEL, data=PROMPTS, conditions=conditions)
    assert (changes(both, condition="drop") > 0.05).all()
    assert changes(both, condition="keep").tolist() == [0.0, 0.0]


def test_codes_of_the_layer_below_are_refused(run: Ran) -> None:
    with pytest.raises(UserError, match=r"reads .*resid_post.*, not resid_pre"):
        run(model=MODEL, data=PROMPTS, capture=[{"sae": "demo", "site": "resid_pre"}])


def test_the_example_drops_the_error_everywhere() -> None:
    experiment = Experiment.from_file(EXAMPLE)
    specs = [c.intervention for c in experiment.conditions.values() if c.intervention is not None]
    assert len(specs) == 3
    assert all(s.options["error"] == "drop" for s in specs)
