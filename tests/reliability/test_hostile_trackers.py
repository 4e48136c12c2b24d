"""Hostile names and texts of a computed run in what trackers are told: Weights & Biases, TensorBoard, a webhook."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown import markdown as to_html

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.plainvalues import unfit_text
from codi_engine.core.running.run import run_experiment
from tests.plugins.test_trackers import Notes, Wrote, _nobody_is_called, server, sessions  # noqa: F401 - fixtures
from tests.support.hostile import SHORT, STRINGS, harmful, storable

pytestmark = pytest.mark.slow


@pytest.mark.timeout(400)
def test_trackers_are_told_texts(demo: Callable[..., Experiment], server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("no_proxy", "*")
    address, got = server
    texts = [storable(one.text)[:60] for one in SHORT]
    edit = {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": [0]}}
    names = [text for text in texts if text.isprintable() and text == text.strip()]
    assert 8 <= len(names) < len(texts)
    for text in set(texts) - set(names):
        with pytest.raises(UserError, match=r"control characters|visible characters"):
            demo(conditions={text: edit})
    trackers = [
        {"plugin": "wandb", "mode": "offline", "project": "p", "tags": [t for t in texts if t.strip()][:4], "name": texts[5]},
        "tensorboard",
        {"plugin": "webhook", "url": f"{address}/hook", "events": ["started", "finished"]},
    ]
    told = [text for one in STRINGS if not unfit_text(text := storable(one.text)[:300])]
    assert len(STRINGS) - 5 <= len(told) < len(STRINGS)  # those with NUL are refused
    everything = "\n".join(told)
    experiment = demo(
        conditions=dict.fromkeys(names, edit),
        hypothesis=everything,
        notes=everything,
        trackers=trackers,
        allow_vacuous=True,
        data={"plugin": "demo-pairs", "limit": 1},
    )
    notes = Notes()
    done = run_experiment(experiment, "run", progress=notes)
    run = done.open()
    assert set(run.cells["condition"]) == {*names, "baseline"}
    assert not [n for n in notes.notes if "failed" in n], notes.notes
    wrote = Wrote(sessions(Path("run"))[0])
    assert wrote.run.display_name == texts[5]
    assert everything.strip()[:40] in wrote.run.notes
    assert set(wrote.config["conditions"]) == set(names)
    (table,) = wrote.tables
    assert {row[0] for row in table["data"]} == {*names, "baseline"}
    assert {k for k in wrote.history[-1] if k.startswith("mean/")} >= {f"mean/{t}/kl" for t in names}
    _check_tensorboard(Path("run"))
    assert [m["kind"] for _, m in got] == ["started", "finished"]
    assert Path("run").resolve().parent == Path.cwd()
    events = Path("run/events.jsonl").read_text(encoding="utf-8")
    for line in events.splitlines():
        json.loads(line, parse_constant=pytest.fail)
    sys.stdout.write(f"{len(names)} conditions and {len(told)} strings in notes: W&B {len(wrote.records)} records, webhook {len(got)} messages\n")


def _check_tensorboard(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    shown = {tag: [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)] for tag in tags["tensors"]}
    for tag, parts in shown.items():
        for part in parts:
            page = to_html(part, extensions=["tables"])
            assert not re.search(r"<(?!/?(?:p|pre|code|table|thead|tbody|tr|th|td|strong|em|br)\b)", re.sub(r"(?s)<pre>.*?</pre>", "", page)), tag
    effects = shown["effects/text_summary"][-1]
    assert harmful(effects) == []


def test_names_of_runs_are_refused(demo: Callable[..., Experiment]) -> None:
    for one in STRINGS:
        name = one.text
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", name):
            assert demo(name=name).name == name
            continue
        with pytest.raises(UserError) as caught:
            demo(name=name)
        assert len(str(caught.value).splitlines()) <= 2 or "\n" in name
