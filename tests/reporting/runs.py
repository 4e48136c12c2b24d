"""Runs that cards, films and journal pages are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment, open_run
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A synthetic run with strong planted pathways and words, analysed."""
    path = tmp_path_factory.mktemp("planted") / "synth"
    write_synthetic(Synthetic(targets=6, trials=40, features=60, words=60, effect=4.0, density=0.1), path)
    analyze_runs([path], ["pathways", "words"], ["words.draw=0"])
    analyze_runs([path], ["proportions"], ["outcome={pattern: '(?P<word>play|risk|win)', categories: {word: [play, risk]}}"])
    return open_run(path)


@pytest.fixture(scope="session")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A small run of pairs on the demo model, with controls, analysed by importance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("patched"))
        value: dict[str, Any] = {
            "name": "patched", "hypothesis": "early steps carry the *operands*", "notes": "a remark",
            "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}, "data": {"plugin": "demo-pairs", "limit": 6},
            "intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": [0, 3], "step": [0, 5]},
            "metrics": ["normalized_effect", "accuracy"], "generate": {"max_new_tokens": 8}, "controls": ["random"], "analyses": ["importance"],
        }  # fmt: skip
        yield Experiment.from_dict(value).run(Path("runs/patched")).open()
