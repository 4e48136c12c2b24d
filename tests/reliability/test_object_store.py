"""Runs at an S3 server: killed at any moment, from any machine, and the end is byte for byte that of a local run; what can be mistaken is said at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.crash import Nursery, content, experiment
from tests.support.objectstore import BUCKET, Server, Wire, read_only, silent

for _package in ("obstore", "moto.server", "boto3"):
    pytest.importorskip(_package)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KILLS = 8
#: examples of the run that is killed: some sixty units
LIMIT = 24
#: seconds within which a mistake is said
SOON = 15.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def nursery(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    """Children whose cache lies in the folder they work in: another folder is another machine."""
    for name, value in {**server.environment, "CODI_ENGINE_CACHE": "cache"}.items():
        monkeypatch.setenv(name, value)
    with Nursery() as made:
        yield made


def machine(tmp_path: Path, name: str, limit: int = 3) -> Path:
    folder = tmp_path / name
    if not folder.exists():
        folder.mkdir()
        (folder / "e.yaml").write_text(yaml.safe_dump(experiment(limit, ())), encoding="utf-8")
    return folder


def copied(server: Server, key: str, folder: Path) -> tuple[dict[str, bytes], bytes]:
    """Return a run's files as a copy of its objects has them, and the lines of its ledger one after another."""
    server.copy(key, folder)
    lines = b"".join(p.read_bytes() for p in sorted((folder / "ledger.d").iterdir()))
    shutil.rmtree(folder / "ledger.d")
    return content(folder), lines


def without_place(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out of ``result.json`` where the run lies."""
    out = dict(files)
    for name in [n for n in files if n.endswith("result.json")]:
        out[name] = json.dumps({k: v for k, v in json.loads(files[name]).items() if k != "runs"}).encode()
    return out


def test_a_run_killed_again_and_again_is_the_local_one(server: Server, nursery: Nursery, tmp_path: Path) -> None:
    random.seed(7)
    home = machine(tmp_path, "local", LIMIT)
    whole = nursery.run(home, ["run", "-q", "e.yaml", "--output", "run"])
    assert whole.code == 0, whole.said
    key, killed, resumed = "runs/killed", 0, 0
    command = ["run", "-q", "e.yaml", "--output", f"s3://{BUCKET}/{key}"]
    before = b""
    for number in range(KILLS):
        where = machine(tmp_path, f"machine-{random.randrange(4)}", LIMIT)
        if random.random() < 0.5:
            shutil.rmtree(where / "cache", ignore_errors=True)
        if number % 2:  # at any moment; many of them fall before the first unit
            ended = nursery.run(where, command, kill_after=random.uniform(0.3, 0.7) * whole.seconds)
        else:  # between a line's object and the line in the folder
            at = {"kind": "fsync", "file": "ledger", "number": random.randint(2, 7), "act": "kill", "run": str(where / "cache")}
            ended = nursery.run(where, command, inject=at)
        assert ended.code in (-9, 0), ended.said
        killed += ended.code == -9
        lines = b"".join(server.get(f"{key}/{k}") for k in server.keys(key) if k.startswith("ledger.d/"))
        assert lines.startswith(before)
        resumed += bool(before) and lines != before
        before = lines
        if lines and number % 4 == 0:
            seen = nursery.run(machine(tmp_path, f"reader-{number}"), ["verify", "-q", f"s3://{BUCKET}/{key}"])
            assert seen.code == 0, seen.said
    print(f"{killed} kills, {resumed} resumptions that added units")
    assert killed >= 5
    assert resumed >= 2
    ended = nursery.run(machine(tmp_path, "last", LIMIT), command)
    assert ended.code == 0, ended.said
    seen = nursery.run(machine(tmp_path, "reader"), ["verify", f"s3://{BUCKET}/{key}"])
    assert (seen.code, "every file is what was written" in seen.said) == (0, True), seen.said
    copy, lines = copied(server, key, tmp_path / "copy" / "run")
    local = content(home / "run")
    assert without_place(copy) == without_place(local)
    assert lines == local["ledger"]
    seen = nursery.run(tmp_path / "copy", ["verify", "-q", "run"])
    assert seen.code == 0, seen.said
    other = machine(tmp_path, "analyst")
    ended = nursery.run(other, ["analyze", "-q", f"s3://{BUCKET}/{key}", "words"])
    assert ended.code == 0, ended.said
    assert nursery.run(home, ["analyze", "-q", "run", "words"]).code == 0
    for table in (home / "run" / "results" / "words").glob("*.parquet"):
        assert server.get(f"{key}/results/words/{table.name}") == table.read_bytes()
    assert f"s3://{BUCKET}/{key}/results/words" in ended.said
    assert "cache" not in ended.said


def test_damage_at_the_bucket_is_named_and_repaired(server: Server, nursery: Nursery, tmp_path: Path) -> None:
    key = "runs/damaged"
    place = f"s3://{BUCKET}/{key}"
    assert nursery.run(machine(tmp_path, "a"), ["run", "-q", "e.yaml", "--output", place]).code == 0
    before = {k: server.get(f"{key}/{k}") for k in server.keys(key)}
    shards = [k for k in before if "/c." in k]
    flipped, cut, lost = shards[3], shards[10], next(k for k in before if k.startswith("texts/"))
    data = bytearray(before[flipped])
    data[len(data) // 2] ^= 4
    server.client.put_object(Bucket=BUCKET, Key=f"{key}/{flipped}", Body=bytes(data))
    server.client.put_object(Bucket=BUCKET, Key=f"{key}/{cut}", Body=before[cut][:-5])
    server.client.delete_object(Bucket=BUCKET, Key=f"{key}/{lost}")
    server.client.put_object(Bucket=BUCKET, Key=f"{key}/data.zarr/stranger", Body=b"x")
    seen = nursery.run(machine(tmp_path, "b"), ["verify", "--json", place])
    found = {f["file"]: f["kind"] for each in json.loads(seen.said[seen.said.index("{") :]).values() for f in each}
    assert (seen.code, found) == (2, {flipped: "damaged", cut: "truncated", lost: "missing", "data.zarr/stranger": "foreign"})
    mended = nursery.run(machine(tmp_path, "b"), ["repair", "-q", place])
    assert mended.code == 0, mended.said
    server.client.delete_object(Bucket=BUCKET, Key=f"{key}/data.zarr/stranger")
    assert nursery.run(machine(tmp_path, "c"), ["verify", "-q", place]).code == 0
    after = {k: server.get(f"{key}/{k}") for k in server.keys(key)}
    assert {k: v for k, v in after.items() if "provenance" not in k} == {k: v for k, v in before.items() if "provenance" not in k}


def cli(folder: Path, arguments: list[str], environment: dict[str, str], limit: float = 120.0) -> tuple[int, list[str], float]:
    """Run a command in a process of its own; returns exit code, what it said of errors, and seconds."""
    started = time.monotonic()
    variables = {k: v for k, v in os.environ.items() if not k.startswith("AWS")} | {"PYTHONPATH": str(ROOT / "src"), "CODI_ENGINE_CACHE": "cache"}
    variables |= {"HOME": str(folder), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", "codi_engine", *arguments], cwd=folder, env=variables, capture_output=True, text=True, timeout=limit, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, lines, time.monotonic() - started


def test_mistakes_are_said_at_once(server: Server, tmp_path: Path) -> None:
    folder, good = machine(tmp_path, "here"), server.environment
    nobody = {k: v for k, v in good.items() if "ACCESS_KEY" not in k}
    with read_only(server) as denied, silent() as dumb:
        cases = {
            "no credentials": ("runs/x", nobody, "there are no credentials"),
            "no credentials, no role": ("runs/x", {**nobody, "AWS_EC2_METADATA_DISABLED": "true"}, "there are no credentials"),
            "no bucket": ("", good, "there is no bucket 'nowhere'"),
            "no permission": ("runs/x", {**good, "AWS_ENDPOINT_URL": denied}, "cannot be written: access is denied (AccessDenied)"),
            "nobody there": ("runs/x", {**good, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "does not answer"),
            "never answers": ("runs/x", {**good, "AWS_ENDPOINT_URL": dumb}, "does not answer"),
            "no such host": ("runs/x", {**good, "AWS_ENDPOINT_URL": "http://host.invalid"}, "does not answer"),
        }
        for name, (key, environment, said) in cases.items():
            url = f"s3://{BUCKET}/{key}" if key else "s3://nowhere/x"
            looks = [["run", "-q", "e.yaml", "--output", url], *([["status", url]] if name != "no permission" else [])]
            for command in looks:
                code, lines, seconds = cli(folder, command, environment)
                print(f"{name}: {command[0]}: {seconds:.1f} s: {lines}")
                assert code == 2
                assert 1 <= len(lines) <= 2
                assert said in lines[0]
                assert url in lines[0]
                assert seconds < SOON
    assert server.keys("runs/x") == []


def test_without_write_permission_a_run_is_read(server: Server, nursery: Nursery, tmp_path: Path) -> None:
    place = f"s3://{BUCKET}/runs/readable"
    assert nursery.run(machine(tmp_path, "a"), ["run", "-q", "e.yaml", "--output", place]).code == 0
    with read_only(server) as denied:
        environment = {**server.environment, "AWS_ENDPOINT_URL": denied}
        for command in (["status", place], ["verify", "-q", place]):
            code, lines, _ = cli(machine(tmp_path, "b"), command, environment)
            assert (code, lines) == (0, [])
        code, lines, _ = cli(machine(tmp_path, "b"), ["analyze", "-q", place, "words"], environment)
        assert code == 2
        assert lines[0].startswith(f"error: {place}: cannot be written: access is denied")


def started(folder: Path, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT / "src"), "CODI_ENGINE_CACHE": "cache", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "codi_engine", *arguments], cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines_there(server: Server, key: str, count: int, process: subprocess.Popen[str]) -> int:
    """Wait until a run has so many lines at the store."""
    for _ in range(1200):
        there = sum(k.startswith("ledger.d/") for k in server.keys(key))
        if there >= count or process.poll() is not None:
            return there
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


def test_a_network_that_fails_costs_nothing_that_is_committed(server: Server, tmp_path: Path) -> None:
    folder, key = machine(tmp_path, "here"), "runs/cut"
    (folder / "e.yaml").write_text(yaml.safe_dump({**experiment(40), "trials": 6}), encoding="utf-8")
    command = ["run", "-q", "e.yaml", "--output", f"s3://{BUCKET}/{key}"]
    wire = Wire(server)
    first = started(folder, command, {**server.environment, "AWS_ENDPOINT_URL": wire.url})
    try:
        assert lines_there(server, key, 4, first) >= 4
        second = cli(machine(tmp_path, "there"), command, server.environment)
        same = cli(folder, command, server.environment)
        for code, lines, _ in (second, same):
            assert code == 2
            assert f"pid {first.pid}" in lines[0]
        wire.cut()
        begun = time.monotonic()
        _, said = first.communicate(timeout=200)
        print(f"gave up {time.monotonic() - begun:.0f} s after the network failed: {said}")
        assert first.returncode == 2
        assert "does not answer" in said
        assert len(said.strip().splitlines()) <= 2
    finally:
        wire.cut()
        first.kill()
    before = {k: server.get(f"{key}/{k}") for k in server.keys(key) if k.startswith("ledger.d/")}
    assert cli(folder, command, server.environment, 300)[0] == 0
    after = {k: server.get(f"{key}/{k}") for k in server.keys(key) if k.startswith("ledger.d/")}
    assert before.items() <= after.items()
    assert len(after) > len(before)
    assert cli(machine(tmp_path, "reader"), ["verify", "-q", f"s3://{BUCKET}/{key}"], server.environment)[0] == 0
