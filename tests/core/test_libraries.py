"""Other libraries' bars: shown to a person who has not asked for silence, hidden elsewhere, and the user's settings put back."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from codi_engine.core.plugins import plugin_manager
from codi_engine.core.progress import Progress, alone
from codi_engine.core.returned import loaded_model
from codi_engine.core.watching.showing import TerminalProgress, ending
from codi_engine.testing import tiny_causal_lm


class Stream(io.StringIO):
    """A standard error that is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("lm"))


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"), [(True, None, True), (False, None, False), (True, Progress(), False), (True, TerminalProgress(), True)]
)
def test_loading_shows_a_bar_to_a_person_alone(
    checkpoint: Path, terminal: bool, progress: Progress | None, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with nullcontext() if progress is None else ending(progress):
        loaded_model(plugin_manager().build("model", {"plugin": "causal_lm", "path": str(checkpoint), "device": "cpu"}, "model", "e"))
    assert ("Loading weights" in stream.getvalue()) == shown
    assert logging.is_progress_bar_enabled()


def test_what_the_user_has_set_is_put_back(checkpoint: Path) -> None:
    model = plugin_manager().build("model", {"plugin": "causal_lm", "path": str(checkpoint), "device": "cpu"}, "model", "e")
    try:
        disable_progress_bars("of.mine")
        logging.disable_progress_bar()
        enable_progress_bars()
        disable_progress_bars("of.mine")
        with alone():
            loaded_model(model)
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled(), are_progress_bars_disabled("of.mine")) == (False, False, True)
    finally:
        logging.enable_progress_bar()
    assert not are_progress_bars_disabled("of.mine")


def test_a_notebook_without_widgets_is_not_warned() -> None:
    """tqdm takes a process for a notebook's kernel by the modules that it has; there the first import of its bars warns where ipywidgets is missing."""
    kernel = (
        "import sys, types; package = types.ModuleType('IPython'); package.get_ipython = lambda: types.SimpleNamespace(config={'IPKernelApp': 1}); "
        "sys.modules |= {'IPython': package, 'ipykernel.zmqshell': types.ModuleType('ipykernel.zmqshell'), 'ipywidgets': None}; "
    )
    own = subprocess.run([sys.executable, "-c", kernel + "import tqdm.auto"], capture_output=True, text=True, timeout=60, check=False)
    assert "IProgress not found" in own.stderr  # else this could not fail
    ours = "import codi_engine.plugins.models.hf; import transformers, huggingface_hub; transformers.utils.logging"
    done = subprocess.run([sys.executable, "-c", kernel + ours], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "IProgress" in done.stderr) == (0, False), done.stderr
