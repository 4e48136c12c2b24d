"""Shared fixtures: experiments on the packaged demo model and on tiny random ones."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test at once: each has one core, its children too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codi_engine import Experiment
from codi_engine.testing import tiny

torch.set_num_threads(min(torch.get_num_threads(), 2))


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """Return a maker of experiments on the demo model; keys given replace the defaults."""
    monkeypatch.chdir(tmp_path)

    def make(**keys: Any) -> Experiment:
        value: dict[str, Any] = {
            "name": "test",
            "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
            "data": {"plugin": "demo-pairs", "limit": 3},
            "metrics": ["kl", "flip"],
            "generate": {"max_new_tokens": 8},
            "controls": "none",
        }
        return Experiment.from_dict({k: v for k, v in {**value, **keys}.items() if v is not None})

    return make


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a causal LM on disk."""
    return tiny.tiny_causal_lm(tmp_path_factory.mktemp("gpt2"), "gpt2")
