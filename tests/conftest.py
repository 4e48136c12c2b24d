"""Shared fixtures: experiments on the packaged demo model and on tiny random ones."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test at once: each has one core, its children too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
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


CHROMIUM = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome") if Path(p).is_file()), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return headless Chromium, one for all tests of pages of a process, or skip."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None and "PLAYWRIGHT_BROWSERS_PATH" not in os.environ:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()
