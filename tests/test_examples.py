"""Every file of examples/ runs as it is on the demo model, with few examples, and ends with tables and figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from codi_engine import Experiment
from codi_engine.core.running.run import Finished

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(p.stem for p in EXAMPLES.glob("*.yaml"))
#: what makes a file small beside ``limit``
SMALL = {
    "feature-patching": ["trials=4", "sweep.feature.limit=2", "generate.max_new_tokens=16"],
    "resampling": ["sweep.donor=2"],
    "early-decode": ["analyses[2].repeats=3", "analyses[2].folds=3"],
    "step-effects": ["data.limit=3"],
    "position-patching": ["data.limit=2"],
    "interchange": ["data.limit=2"],
    "iterative-patching": ["data.limit=2"],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def run(name: str, here: Path) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        experiment = Experiment.from_file(EXAMPLES / f"{name}.yaml", ["model.device=cpu", "data.limit=3", *SMALL.get(name, [])])
        return experiment.run()


#: like others, and longer
SLOW = ("interchange", "iterative-patching", "step-importance", "latent-counts", "attribution", "position-patching", "step-effects")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
def test_it_runs(name: str, here: Path) -> None:
    if name == "recorded" and not (here / "runs/extract-latents").exists():
        run("extract-latents", here)
    finished = run(name, here)
    experiment = finished.experiment
    assert experiment is not None
    assert set(finished.summaries) == {a.plugin for a in experiment.analyses}
    assert all(text.strip() for text in finished.summaries.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert (len(finished.tables) > 0) == bool(experiment.analyses)
        assert all(path.stat().st_size > 0 for path in [*finished.tables.values(), *finished.figures.values()])
        if experiment.conditions or experiment.intervention:
            assert finished.figures
        for part in finished.parts.values() or [finished]:
            assert len(part.open().cells) == part.cells


def test_every_original_study_has_its_file() -> None:
    assert {"activation-patching", "feature-patching", "resampling", "position-patching", "iterative-patching", "step-importance"} <= set(NAMES)
