"""Lists of devices, and what holding several of them costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.planning.costs import Costs, StageCost, total_of
from codi_engine.core.planning.estimate import spread
from codi_engine.core.planning.preparing import prepare
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.rollout.devices import devices_of, held
from codi_engine.core.running.run import plan_experiment
from codi_engine.core.watching.recording import Recorder

Maker = Callable[..., Experiment]


def on(demo: Maker, device: Any) -> Experiment:
    return demo(model={"plugin": "codi", "checkpoint": "demo", "device": device})


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_list_names_devices(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 3)
    assert devices_of(on(demo, "cuda:0,cuda:2")) == devices_of(on(demo, ["cuda:0", "cuda:2"])) == ["cuda:0", "cuda:2"]
    assert devices_of(on(demo, "all")) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_of(demo().with_overrides(["model.device=cuda:1, cuda:0"])) == ["cuda:1", "cuda:0"]
    assert devices_of(on(demo, "auto")) == devices_of(on(demo, "cuda:9")) == []  # one device is the model's own matter


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (["cuda:0", "cuda:2"], r"model.device\[1\]: 'cuda:2': only 2 CUDA devices here"),
        ("cpu,gpu", r"model.device\[1\]: 'gpu' is no device"),
        ([], "write a list of devices"),
        (["cpu", 1], "write a list of devices"),
        ("cpu,", "write a list of devices"),
    ],
)
def test_every_device_of_a_list_must_be_there(demo: Maker, monkeypatch: pytest.MonkeyPatch, device: Any, said: str) -> None:
    with_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=said):
        plan_experiment(on(demo, device))


def test_all_needs_a_cuda_device(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    with pytest.raises(UserError, match="there is no CUDA device here"):
        plan_experiment(on(demo, "all"))


def test_a_plan_for_a_list_is_that_of_its_first_device(demo: Maker) -> None:
    alone, both = (prepare(on(demo, d), plugin_manager(load=False)) for d in ("cpu", ["cpu", "cpu"]))
    assert both.experiment.to_yaml() == alone.experiment.to_yaml()
    assert (alone.devices, both.devices) == (["cpu"], ["cpu", "cpu"])
    summary = plan_experiment(on(demo, "cpu,cpu"))
    assert dict(summary.lines())["model"].endswith("cpu, cpu")
    assert summary.costs.gpu_hours == 0.0


def test_gpus_are_counted_once_each() -> None:
    assert held(["cuda:0", "cuda:1", "cuda:1"]) == 2
    assert held(["cpu", "cpu"]) == 1


def test_devices_share_whole_units_and_are_all_held() -> None:
    stages = [StageCost("load", 10.0), StageCost("baseline", 30.0, cells=200), StageCost("sweep", 50.0, cells=5 * 256)]
    assert spread(stages, ["cuda:0"]) == stages
    load, baseline, sweep = spread(stages, ["cuda:0", "cuda:1"])
    assert (load.seconds, baseline.seconds) == (20.0, 30.0)  # loaded twice; one unit
    assert sweep.seconds == pytest.approx(30.0)  # of 5 units, 3 and 2
    costs = Costs([load, baseline, sweep, StageCost("analysis words", 1000.0)], "cuda:0", price=3.0)
    assert costs.gpu_hours == pytest.approx(2 * 80 / 3600)
    assert costs.money == pytest.approx(3 * 2 * 80 / 3600)
    assert Costs.from_dict(costs.to_dict()).gpu_hours == costs.gpu_hours


def test_invocations_on_one_and_on_several_devices_add_up() -> None:
    one, four = StageCost("sweep", 7200.0), StageCost("sweep", 3600.0).on(4)
    for parts in ([one, four], [four, one]):
        whole = total_of(parts)
        assert whole.seconds == 10800.0
        assert Costs([whole], "cuda").gpu_hours == pytest.approx(2 + 4)
    assert Costs([four.scaled(0.25)], "cuda").gpu_hours == pytest.approx(1.0)
    assert Costs([total_of([one, one])], "cuda").gpu_hours == pytest.approx(4.0)


def test_a_recorder_counts_the_devices_and_takes_the_peaks_it_is_told() -> None:
    recorder = Recorder("cpu")
    recorder.devices, recorder.peak = 3, lambda: 123
    recorder.begin("sweep")
    recorder.committed(5, 10)
    recorder.begin("analysis words")
    recorder.end()
    stages = recorder.record()["stages"]
    assert stages["sweep"]["device_seconds"] == pytest.approx(3 * stages["sweep"]["seconds"])
    assert stages["sweep"]["memory"] == 123
    assert stages["analysis words"]["device_seconds"] is None
