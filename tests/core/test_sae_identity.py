"""A run knows the autoencoders that it was computed with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment, open_run
from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.running.run import run_experiment
from tests.support.saes import write_sae


def feature_run(demo: Callable[..., Experiment], path: str, limit: int) -> Experiment:
    edit = {"plugin": "sae", "sae": path, "site": "resid_post", "layer": 1, "tokens": "last", "feature": 3, "value": 2.0}
    model = {"plugin": "causal_lm", "path": "demo", "device": "cpu"}
    data = {"plugin": "demo-prompts", "limit": limit}
    return demo(model=model, data=data, intervention=edit, sweep={}, metrics=["flip"], generate={"max_new_tokens": 4})


def test_other_weights_under_the_same_path_are_another_run(demo: Callable[..., Experiment], tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae", 128)
    run_experiment(feature_run(demo, str(folder), 1), "run")
    assert list(open_run("run").provenance["saes"]) == [str(folder)]
    run_experiment(feature_run(demo, str(folder), 2), "run")
    other = write_sae(tmp_path / "other", 128, seed=1)
    (folder / "sae_weights.safetensors").write_bytes((other / "sae_weights.safetensors").read_bytes())
    with pytest.raises(DifferentRun, match="was computed with another autoencoder"):
        run_experiment(feature_run(demo, str(folder), 3), "run")


@pytest.mark.parametrize("until", [r"(\w+\s*)+!", "(unclosed"])
def test_patterns_that_cannot_be_used_are_refused(demo: Callable[..., Experiment], until: str) -> None:
    generate: dict[str, Any] = {"max_new_tokens": 4, "do_sample": True, "until": until, "retries": 1}
    with pytest.raises(UserError, match="until"):
        demo(generate=generate)
