"""What follows when every unit of a run is committed: its analyses and its checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codi_engine.core.errors import PluginError

if TYPE_CHECKING:
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.running.run import Finished
    from codi_engine.core.running.runner import Runner


def analyse(runner: Runner, plugins: Plugins, finished: Finished) -> None:
    """Run the experiment's analyses and checks on the run, which is complete."""
    from codi_engine.core.runs.analyzing import analyze_one
    from codi_engine.core.runs.results import open_run

    prepared, path = runner.prepared, runner.path
    for mapping in prepared.experiment.analyses:
        analysis = plugins.build("analysis", mapping, where="analyses", source=str(path))
        runner.cost.begin(f"analysis {mapping.plugin}")
        try:
            finished.take(analyze_one([open_run(path)], analysis, runner.progress, spread=runner.spread), runner.life)
        except PluginError as error:
            finished.failures.append(error)  # the others do not depend on it
            runner.life.warned(f"analysis {analysis.name} failed: {error}")
        runner.cost.end()
    if prepared.checks:
        from codi_engine.core.runs.checking import check_run

        finished.checks = check_run(open_run(path), prepared.checks)
        for name in finished.checks["check"][finished.checks["passed"] == False]:  # noqa: E712 - None is neither
            runner.life.warned(f"check '{name}' failed")
