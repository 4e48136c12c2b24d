"""Built-in trackers: what they wrote is read back with the readers of those it is for."""

from __future__ import annotations

import importlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Event, NoOptions
from codi_engine.core.progress import Progress
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.results import Run
from codi_engine.core.watching import lifecycle
from codi_engine.plugins.trackers import weights_and_biases
from codi_engine.plugins.trackers.announce import Command, CommandOptions, Webhook, WebhookOptions
from codi_engine.plugins.trackers.places import effects_of, scalar_names
from codi_engine.plugins.trackers.tensorboard_files import TensorBoard
from codi_engine.plugins.trackers.wandb_session import identity

PATCH: dict[str, Any] = {
    "intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": [0, 1], "step": [0, 1]},
    "hypothesis": "early steps matter", "notes": "a note",
}  # fmt: skip
#: a W&B data store: blocks of this size, records in one or more parts of them
BLOCK, HEADER = 32_768, 7


def wandb_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (kind, message) of a .wandb file: W&B's header, then the log format of LevelDB."""
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    data, at, begun = path.read_bytes(), HEADER, b""
    assert data.startswith(b":W&B")
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])  # kind: 1 whole, 2 first, 3 middle, 4 last part
        begun = (b"" if kind in (1, 2) else begun) + data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            name = record.WhichOneof("record_type")
            yield name, getattr(record, name)


def items(values: Any) -> dict[str, Any]:
    return {".".join(v.nested_key) or v.key: json.loads(v.value_json) for v in values}


class Wrote:
    """What a W&B session left on disk."""

    def __init__(self, folder: Path) -> None:
        deadline = time.monotonic() + 20
        while True:  # W&B's service ends the file a moment after it says so
            self.records = list(wandb_records(next(folder.glob("run-*.wandb"))))
            if self.of("exit") or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        self.run = next(m for k, m in self.records if k == "run")
        self.config = {u.key: json.loads(u.value_json) for u in self.run.config.update}
        self.history = [items(m.item) for k, m in self.records if k == "history"]
        self.summary: dict[str, Any] = {}
        for kind, message in self.records:
            if kind == "summary":
                self.summary.update(items(message.update))
        self.tables = [json.loads(p.read_text()) for p in folder.rglob("*.table.json")]
        self.images = [p.name for p in folder.rglob("*.png")]

    def of(self, kind: str) -> list[Any]:
        return [m for k, m in self.records if k == kind]


class Notes(Progress):
    def __init__(self, stop: int = -1) -> None:
        self.notes: list[str] = []
        self.stop = stop

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, count: int) -> None:
        self.stop -= 1
        if self.stop == -1:
            raise KeyboardInterrupt


def sessions(run: Path) -> list[Path]:
    return sorted(p for p in (run / "wandb").iterdir() if p.is_dir() and not p.is_symlink())


@pytest.fixture(autouse=True)
def _nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "PATIENCE", 60.0)  # a machine that others use too
    monkeypatch.setattr(lifecycle, "SHORT", 60.0)
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        if name != "WANDB_SERVICE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def tracked(demo: Callable[..., Experiment]) -> Callable[..., Experiment]:
    def make(limit: int = 4, **keys: Any) -> Experiment:
        trackers = [{"plugin": "wandb", "mode": "offline", "tags": ["a", "b"], "group": "g", "job_type": "sweep", "project": "p"}, "tensorboard"]
        return demo(**{**PATCH, "data": {"plugin": "demo-pairs", "limit": limit}, "trackers": trackers, **keys})

    return make


@pytest.mark.slow
def test_a_paused_run_goes_on_in_wandb_and_tensorboard(tracked: Callable[..., Experiment], capfd: pytest.CaptureFixture[str]) -> None:
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")

    first, second = Notes(stop=1), Notes()
    with pytest.raises(KeyboardInterrupt):
        run_experiment(tracked(), "run", progress=first)
    finished = run_experiment(tracked(6, analyses=["importance"]), "run", progress=second)
    run, path = finished.open(), Path("run")
    assert len(run.cells) == 6 * 2 + 6 * 4
    folders = sessions(path)
    said = [[n for n in notes.notes if n.startswith("tracker")] for notes in (first, second)]
    assert said == [[f"tracker wandb: offline; `wandb sync {folder}` sends the run"] for folder in folders]
    out, err = capfd.readouterr()
    assert "wandb" not in out + err

    paused, whole = (Wrote(f) for f in folders)
    assert paused.run.run_id == whole.run.run_id == identity(path)
    assert [h["cells"] for h in paused.history] == [8]
    assert [h["_step"] for h in whole.history] == [h["cells"] for h in whole.history]
    assert [h["cells"] for h in whole.history] == [28, 36]  # 8 + 16 were committed; 4 baselines, then 8 edited cells and the results
    assert [a.text for a in paused.of("alert")] == ["stopped at 8 of 24 cells; the same command goes on"]
    assert paused.of("preempting")
    assert (paused.of("exit")[0].exit_code, whole.of("exit")[0].exit_code) == (1, 0)
    assert [m.name or m.glob_name for m in whole.of("metric")] == ["cells", "*"]
    check_wandb(whole, run)
    check_tensorboard(reader.EventAccumulator("run/tensorboard", size_guidance={"images": 0, "tensors": 0}).Reload(), run)


def check_wandb(wrote: Wrote, run: Run) -> None:
    about = wrote.run
    assert (about.project, about.run_group, about.job_type, list(about.tags), about.display_name) == ("p", "g", "sweep", ["a", "b"], "test")
    assert about.notes == "hypothesis: early steps matter\n\na note"
    assert wrote.config["sweep"] == {"layer": [0, 1], "step": [0, 1]}
    assert wrote.config["provenance"]["model_digest"] == run.provenance["model_digest"]
    cells = run.cells[run.cells["condition"] == "patch"]
    assert wrote.history[-1]["mean/patch/kl"] == pytest.approx(cells["kl"].mean(), rel=1e-9)
    for layer, step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        value = cells[(cells["layer"] == layer) & (cells["step"] == step)]["kl"].mean()
        assert wrote.summary[f"aggregate/layer_{layer}/pos_{step}/mean_kl"] == pytest.approx(value, rel=1e-9)
    assert len([k for k in wrote.summary if k.startswith("aggregate/")]) == 8
    (table,) = wrote.tables
    assert table["columns"] == ["condition", "example", "variant", "layer", "step", "flip", "kl", "n"]
    rows = [dict(zip(table["columns"], r, strict=True)) for r in table["data"]]
    pairs = [r for r in rows if r["condition"] == "patch" and r["example"] is not None]
    assert len(pairs) == len(cells) == 24
    assert {type(r["layer"]) for r in pairs} == {int}
    assert [r["n"] for r in rows if r["condition"] == "patch" and r["example"] is None] == [6] * 4
    assert len(wrote.images) == 3
    kept = next(a for a in wrote.of("artifact") if a.type == "results")
    names = {c.path for c in kept.manifest.contents}
    assert {"experiment.yaml", "importance/effects.parquet", "importance/heatmap.png"} <= names
    assert not wrote.of("output_raw")
    assert not wrote.of("stats")


def check_tensorboard(events: Any, run: Run) -> None:
    points = events.Scalars("mean/patch/kl")
    steps = [p.step for p in points]
    assert steps == sorted(steps)
    assert steps[-1] == len(run.cells) == 36
    assert points[-1].value == pytest.approx(run.cells[run.cells["condition"] == "patch"]["kl"].mean(), rel=1e-5)
    tags = events.Tags()
    assert "figures/importance/heatmap" in tags["images"]
    texts = {tag: [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)] for tag in tags["tensors"]}
    assert "| condition | variant | layer | step |" in texts["effects/text_summary"][0]
    assert "demo-pairs" in texts["experiment/text_summary"][0]
    assert any("**paused**: stopped at 8 of 24" in t for t in texts["events/text_summary"])


def test_too_many_places_are_in_the_table_only(tracked: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_and_biases, "KEYS", 10)
    monkeypatch.setattr(weights_and_biases, "ROWS", 10)
    notes = Notes()
    wandb = {"plugin": "wandb", "mode": "offline", "artifact": False, "log_every": 2, "name": "mine"}
    run = run_experiment(tracked(trackers=[wandb]), "run", progress=notes).open()
    wrote = Wrote(sessions(Path("run"))[0])
    assert not [k for k in wrote.summary if k.startswith("aggregate/")]
    assert wrote.summary["table_rows_left_out"] == len(effects_of(run).examples) + len(effects_of(run).places) - 10
    assert len(wrote.tables[0]["data"]) == 10
    assert {k for h in wrote.history for k in h if "/" in k} <= {"mean/baseline/flip", "mean/baseline/kl"}
    assert len({k for h in wrote.history for k in h}) < 20
    said = [n for n in notes.notes if n.startswith("tracker")]
    assert "8 effects of places are in the table only" in said[0]
    assert "the table holds 10 rows; 20 rows of single examples are left out" in said[1]
    assert wrote.run.display_name == "mine"
    assert [h["cells"] for h in wrote.history] == [24]
    assert not [a for a in wrote.of("artifact") if a.type == "results"]
    assert len(scalar_names(effects_of(run))) == 8


@pytest.mark.parametrize("outage", ["no key", "no answer"])
def test_where_wandb_is_away_files_are_written(tracked: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, outage: str) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    if outage == "no answer":
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        from codi_engine.plugins.trackers import wandb_session

        monkeypatch.setattr(wandb_session, "_obstacle", lambda wandb: "127.0.0.1 cannot be reached (Connection refused)")
    notes = Notes()
    run_experiment(tracked(trackers=[{"plugin": "wandb", "mode": "online"}]), "run", progress=notes)
    said = [n for n in notes.notes if n.startswith("tracker")]
    assert {"no key": "there is no API key", "no answer": "cannot be reached"}[outage] in said[0]
    assert "wandb sync run/wandb/offline-run-" in said[1]
    assert Wrote(sessions(Path("run"))[0]).history[-1]["cells"] == 24


@pytest.mark.slow
def test_wandb_and_tensorboard_are_imported_by_their_trackers_only(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom codi_engine import Experiment\n"
        "e = Experiment.from_dict({'name': 't', 'model': {'plugin': 'codi', 'checkpoint': 'demo', 'device': 'cpu'},"
        " 'data': {'plugin': 'demo-pairs', 'limit': 2}, 'metrics': ['kl'], 'generate': {'max_new_tokens': 4},"
        " 'intervention': {'plugin': 'zero', 'site': 'latent_in', 'on': 'clean'}, 'sweep': {'step': [0]}, 'controls': 'none',"
        " 'trackers': [{'plugin': 'command', 'argv': ['true']}]})\n"
        "e.run('run')\n"
        "print(sorted(m for m in ('wandb', 'tensorboard', 'torch.utils.tensorboard') if m in sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CODI_ENGINE_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout.strip().endswith("[]"), done.stderr
    assert (tmp_path / "run" / "events.jsonl").is_file()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'codi-engine\[tensorboard\]'"):
        TensorBoard(NoOptions()).check()
    with pytest.raises(UserError, match="pip install wandb"):
        weights_and_biases.Wandb(weights_and_biases.WandbOptions()).check()


def test_an_id_stays_with_its_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger").write_text("the same\nfirst line\n")
    one, other = identity(tmp_path / "a"), identity(tmp_path / "b")
    assert one != other
    (tmp_path / "a").rename(tmp_path / "moved")
    assert identity(tmp_path / "moved") == one
    assert one.isalnum()


# -------------------------------------------------------------------------------------------- announcements


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[dict[str, str], dict[str, Any]]]]]:
    got: list[tuple[dict[str, str], dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers), json.loads(body)))
            self.send_response(403 if self.path.startswith("/closed") else 302 if self.path == "/moved" else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            got.append((dict(self.headers), {}))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", got
        made.shutdown()
        thread.join()


def test_a_webhook_and_a_command_are_told_of_a_run(
    demo: Callable[..., Experiment], server: tuple[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = server
    monkeypatch.setenv("HOOK_TOKEN", "Bearer s3cret")
    monkeypatch.setenv("no_proxy", "*")
    script = "import sys, json; json.load(sys.stdin); open('told', 'a').write('x'); sys.exit('who knows')"
    trackers = [
        {"plugin": "webhook", "url": f"{address}/hook", "headers": {"Authorization": "HOOK_TOKEN"}, "events": ["started", "finished", "analysed"]},
        {"plugin": "command", "argv": [sys.executable, "-S", "-c", script]},
    ]  # fmt: skip
    notes = Notes()
    run_experiment(demo(**PATCH, trackers=trackers, analyses=["importance"], data={"plugin": "demo-pairs", "limit": 2}), "run", progress=notes)
    assert [m["kind"] for _, m in got] == ["started", "analysed", "finished"]
    head, last = got[-1]
    assert head["Authorization"] == "Bearer s3cret"
    assert (last["text"], last["run"], last["experiment"], last["data"]["cells"]) == ("test: finished", "run", "test", 12)
    assert "s3cret" not in Path("run/experiment.yaml").read_text(encoding="utf-8") + Path("run/events.jsonl").read_text(encoding="utf-8")
    assert Path("told").read_text(encoding="utf-8") == "x"
    assert next(n for n in notes.notes if "command" in n).endswith("RuntimeError: " + f"{sys.executable} ended with 1: who knows")


def test_a_webhook_that_refuses_is_named_without_its_address(server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, got = server
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HOOK", f"{address}/closed?key=s3cret")
    closed = Webhook(WebhookOptions(url_from="HOOK"))
    closed.check()
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1 answered 403") as refused:
        closed.event(Event("failed", "no more"))
    closed.event(Event("warning", "is not asked for"))
    assert len(got) == 1
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9/s3cret")
    with pytest.raises(ConnectionError, match="cannot be reached") as away:
        closed.event(Event("failed", "no more"))
    assert "s3cret" not in str(refused.value) + str(away.value)


def test_a_webhook_follows_nobody_and_repeats_no_secret(server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, got = server
    monkeypatch.setenv("HOOK_TOKEN", "Bearer s3cret")
    monkeypatch.setenv("no_proxy", "*")
    headers = {"Authorization": "HOOK_TOKEN"}
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1 answered 302 Found"):
        Webhook(WebhookOptions(url=f"{address}/moved", headers=headers)).event(Event("failed", "x"))
    assert len(got) == 1  # what was posted; nothing was sent to where it pointed
    for value in ("s3cret\r", "s3crét"):
        monkeypatch.setenv("HOOK_TOKEN", value)
        with pytest.raises(UserError, match=r"headers\.Authorization: is no HTTP header") as caught:
            Webhook(WebhookOptions(url=address, headers=headers)).check()
        assert "s3cr" not in str(caught.value)
    monkeypatch.setenv("HOOK", f"{address}/s3cret \n")
    with pytest.raises(UserError, match="http or https address") as caught:
        Webhook(WebhookOptions(url_from="HOOK")).check()
    assert "s3cr" not in str(caught.value)


def test_a_command_that_takes_too_long_is_ended_with_its_children() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])"
    slow = Command(CommandOptions(argv=[sys.executable, "-S", "-c", program], timeout=0.5))
    with pytest.raises(TimeoutError, match=r"was ended after 0\.5 s"):
        slow.event(Event("failed", "x"))
