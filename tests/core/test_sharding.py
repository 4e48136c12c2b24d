"""One run computed by several processes: the bytes of one, whoever comes first, last, twice or never."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.cli.main import main
from codi_engine.core.errors import UserError
from codi_engine.core.running import generations, origins
from codi_engine.core.running.run import run_experiment
from codi_engine.core.running.shares import beside, parse_share
from codi_engine.core.watching.eventlog import read_events
from codi_engine.core.watching.status import status_of
from codi_engine.store.lock import RunLock
from codi_engine.store.outbox import Outbox
from codi_engine.store.reader import RunReader
from codi_engine.store.verifying import verify
from codi_engine.testing import tiny
from tests.support.crash import content, experiment
from tests.support.forked import Forked
from tests.support.lines import write_lines

#: cells of a unit here
CELLS = 8


@pytest.fixture(autouse=True)
def small_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory of one's own, with units of a few cells, as the forked children do too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generations, "UNIT_CELLS", CELLS)
    (tmp_path / "e.yaml").write_text(json.dumps(experiment(3, [])), encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Return what one process alone writes."""
    path = tmp_path_factory.mktemp("serial") / "run"
    before, generations.UNIT_CELLS = generations.UNIT_CELLS, CELLS
    try:
        run_experiment(Experiment.from_dict(experiment(3, [])), path)
    finally:
        generations.UNIT_CELLS = before
    return content(path)


def arguments(shard: str, *more: str) -> list[str]:
    return ["run", "-q", "e.yaml", "--output", "run", "--shard", shard, *more]


def forked(shard: str, *more: str, prepare: Callable[[], None] = lambda: None) -> Forked:
    return Forked(arguments(shard, *more), Path(f"said-{shard.replace('/', '-')}"), prepare)


def slowly(seconds: float) -> Callable[[], None]:
    """Let every unit of a child take some time, and write down when it is computed."""

    def prepare() -> None:
        from codi_engine.core.running.computing import Computer

        real = Computer.compute

        def compute(self: Computer, unit: Any) -> Any:
            time.sleep(seconds)
            made = real(self, unit)
            with Path("computed").open("a", encoding="utf-8") as file:
                file.write(f"{unit.number}\n")
            return made

        Computer.compute = compute  # type: ignore[method-assign]

    return prepare


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def times_computed(run: Path) -> Counter[int]:
    return Counter(event["unit"] for event in read_events(run) if event["event"] == "computed")


def assert_whole(whole: Mapping[str, bytes], run: Path = Path("run")) -> None:
    found = content(run)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []
    assert verify(run) == []


# ---------------------------------------------------------------------------------------------------------------- which part


@pytest.mark.parametrize("wrong", ["2/2", "a/b", "0/0", "-1/2", "1", "1/", "0/2/3", "٠/٢", "0/100001", ""])
def test_a_wrong_share_is_one_line(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(wrong)) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"error: --shard: must be i/n with i from 0 to n-1, such as 0/2 and 1/2, or auto; got '{wrong}'"]
    assert not Path("run").exists()


def test_launchers_say_which_part_it_is() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    assert str(parse_share("auto", array)) == "2/4"
    assert parse_share("auto", array).taken == "Slurm array: SLURM_ARRAY_TASK_ID=7, SLURM_ARRAY_TASK_COUNT=4"
    assert str(parse_share("auto", {"SLURM_PROCID": "1", "SLURM_NTASKS": "3"})) == "1/3"
    assert str(parse_share("auto", {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"})) == "1/2"
    with pytest.raises(UserError, match="no launcher says"):
        parse_share("auto", {"RANK": "1"})
    with pytest.raises(UserError, match="give the array as 0-1, without steps"):
        parse_share("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0"})
    with pytest.raises(UserError, match="must be whole numbers"):
        parse_share("auto", {"RANK": "x", "WORLD_SIZE": "2"})


def test_checkpoints_and_trials_have_no_shards(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text(json.dumps({**experiment(3, []), "checkpoints": {"a": {}, "b": {}}}), encoding="utf-8")
    assert main(["run", "-q", "c.yaml", "--shard", "0/2"]) == 2
    assert "has checkpoints" in capsys.readouterr().err
    assert main(["run", "-q", "e.yaml", "--shard", "0/2", "--test"]) == 2
    assert "--shard goes with neither --test nor --dry-run" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------------ together


def test_two_at_once_write_what_one_writes(whole: Mapping[str, bytes]) -> None:
    both = [forked("0/2"), forked("1/2")]
    assert [one.wait() for one in both] == [0, 0], [one.said.read_text() for one in both]
    assert_whole(whole)
    assert set(times_computed(Path("run")).values()) == {1}
    assert "finished" in RunReader("run").provenance


@pytest.mark.slow
def test_one_after_the_other_write_what_one_writes(whole: Mapping[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("0/2")) == 0
    assert capsys.readouterr().out == "shard 0/2: its 4 units are done; 3 of 8 units of the run are still with other shards (1/2)\n"
    assert [f.kind for f in verify("run")] == ["interrupted"] * 2  # its last two wait for one of the other's
    assert main(arguments("0/2")) == 0  # again: nothing is left for it
    assert "3 of 8 units of the run are still with other shards (1/2)" in capsys.readouterr().out
    assert main(arguments("1/2")) == 0
    assert_whole(whole)
    assert set(times_computed(Path("run")).values()) == {1}
    assert main(arguments("0/2")) == 0
    assert capsys.readouterr().out.endswith("shard 0/2: its 4 units are done; the run is complete\n")


@pytest.mark.slow
def test_who_runs_it_whole_takes_what_waits_and_computes_the_rest(whole: Mapping[str, bytes]) -> None:
    assert main(arguments("2/3")) == 0
    assert len(Outbox(Path("run")).receipts()) == 2
    before = RunReader("run").committed.keys()
    assert main(["run", "-q", "e.yaml", "--output", "run"]) == 0
    assert_whole(whole)
    assert len(before) == 2
    assert {u for u, n in times_computed(Path("run")).items()} == {0, 1, 4, 7}


@pytest.mark.slow
def test_the_same_share_twice_and_other_shares_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    first = forked("0/2", prepare=slowly(100.0))
    try:
        until(lambda: Path("run/outbox/shard-0-of-2.lock").exists())
        assert main(arguments("0/2")) == 2
        owner = f"{os.uname().nodename} pid {first.pid}"
        assert capsys.readouterr().err == f"error: run: shard 0/2 of it is being computed by {owner}; wait for it or stop it\n"
        assert main(arguments("0/3")) == 2
        said = capsys.readouterr().err
        assert said == f"error: run: is being computed in other shares, by shard 0/2 ({owner}); give every process the same n in --shard i/n\n"
        until(lambda: Path("run/ledger").exists())
        until(lambda: status_of("run").holder == f"shard 0/2 ({owner})")
        assert status_of("run").state == "running"
        assert main(["merge", "run"]) == 2
        assert "takes in what waits; merge it when no process is left" in capsys.readouterr().err
    finally:
        first.send(signal.SIGKILL)
        first.wait()


@pytest.mark.slow
def test_other_code_at_the_same_time_is_refused_and_later_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = forked("0/2", prepare=slowly(100.0))
    try:
        until(lambda: Path("run/provenance.json").exists())
        monkeypatch.setattr(origins, "source_of", lambda module: "f" * 64)
        assert main(arguments("1/2")) == 2
        said = capsys.readouterr().err
        assert "shard 0/2 (" in said
        assert "computes it with other code: codi-engine " in said
        assert "(sha256 ffffffffffff) here" in said
    finally:
        first.send(signal.SIGKILL)
        first.wait()
    assert main(["run", "e.yaml", "--output", "run"]) == 0
    assert "run: was begun with other code: codi-engine" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_finishes_the_unit_in_work_and_the_rest_goes_on(whole: Mapping[str, bytes]) -> None:
    first = forked("0/2", prepare=slowly(0.4))
    until(lambda: times_computed(Path("run")))
    time.sleep(0.1)  # in the middle of the second
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    assert "goes on" in first.said.read_text()
    done = times_computed(Path("run"))
    assert done
    assert forked("1/2").wait() == 0
    assert forked("0/2").wait() == 0
    assert_whole(whole)
    assert set(times_computed(Path("run")).values()) == {1}


@pytest.mark.slow
def test_a_share_of_a_run_elsewhere_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/mine").write_bytes(b"mine")
    assert main(arguments("0/2")) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert [p.name for p in Path("run").iterdir()] == ["mine"]
    Path("run/mine").unlink()
    Path("run").rmdir()
    assert main(arguments("0/2", "--set", "metrics=[nix]")) == 2
    assert not Path("run").exists()


# ------------------------------------------------------------------------------------------------------------------- killed


def starts() -> int:
    return sum(event["event"] == "started" for event in read_events("run"))


def kills(number: int, seed: int) -> tuple[int, int]:
    """Kill one of two shards while it computes, start it again, and return how often it was hit and how many finished units were computed again."""
    rng, hit = random.Random(seed), 0
    other, one = forked("1/2", prepare=slowly(0.3)), None
    while hit < number:
        begun = starts() + (hit == 0)  # of the other one
        one = forked("0/2", prepare=slowly(0.15))
        until(lambda begun=begun: starts() > begun)  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.4))
        one.send(signal.SIGKILL)
        assert one.wait() == 128 + signal.SIGKILL, "it was done before it could be killed"
        hit += 1
    one = forked("0/2")
    assert one.wait() == 0, one.said.read_text()
    assert other.wait() == 0, other.said.read_text()
    computed = Path("computed").read_text(encoding="utf-8").split()
    return hit, len(computed) - len(set(computed))


def killed(number: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "UNIT_CELLS", CELLS // 2)
    assert main(["run", "-q", "e.yaml", "--output", "alone"]) == 0
    hit, again = kills(number, seed)
    assert_whole(content(Path("alone")))
    assert len(RunReader("run").committed) == 15
    assert again <= hit
    sys.stdout.write(f"{hit} kills, {again} finished units computed again\n")


@pytest.mark.slow
def test_a_shard_that_is_killed_loses_the_unit_in_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    killed(1, 4, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_five_kills_of_one_of_two_shards(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(5, seed, monkeypatch)


# -------------------------------------------------------------------------------------------------------------------- merging


def elsewhere(*shards: str, more: Sequence[str] = ()) -> list[str]:
    """Compute shards into directories of their own, as on machines without a common disk."""
    names = []
    for shard in shards:
        names.append(f"disk-{shard[0]}")
        assert main(["run", "-q", "e.yaml", "--output", names[-1], "--shard", shard, *more]) == 0
    return names


@pytest.mark.slow
def test_directories_without_a_common_disk_are_merged(whole: Mapping[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = elsewhere("0/2", "1/2")
    capsys.readouterr()
    assert main(["merge", first, second]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 units from disk-1" in said
    assert "8 of 8 units (60 of 60 cells)" in said
    assert said.endswith("next nothing is left to do")
    assert_whole(whole, Path(first))
    assert main(["run", "-q", "e.yaml", "--output", first]) == 0
    assert_whole(whole, Path(first))
    shutil.copytree(second, "third")
    assert main(["merge", second, first]) == 0  # the other way round, from a finished run
    assert_whole(whole, Path(second))


def damaged(path: Path) -> None:
    texts = next(path.glob("outbox/*/texts/*.arrow"))
    texts.write_bytes(b"x" * texts.stat().st_size)


def recorded(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from codi_engine.store.provenance import read_provenance, write_provenance

    about = read_provenance(path)
    change(about)
    write_provenance(path, about)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "change", "problem"),
    [
        (["--set", "seed=5"], None, "holds another experiment than run (seed: 0 → 5)"),
        (["--limit", "2"], None, "was planned otherwise than run (5 units in 1 plan, not 8 units in 1 plan)"),
        ([], lambda p: recorded(p, lambda a: a["arithmetic"][0].update(bits="0" * 64, torch="9.9")), "has other bits than run (torch"),
        ([], lambda p: recorded(p, lambda a: a["code"]["codi-engine"].update(version="9.9")), "was computed with other code than run: codi-engine"),
        ([], damaged, "is damaged: its checksum is not the one that was recorded"),
        ([], lambda p: shutil.rmtree(p), "no such directory"),
    ],
)
def test_other_runs_are_not_merged(more: list[str], change: Any, problem: str, whole: Mapping[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-q", "e.yaml", "--output", "run", "--shard", "0/2"]) == 0
    (other,) = elsewhere("1/2", more=more)
    if change is not None:
        change(Path(other))
    before = (Path("run") / "ledger").read_bytes()
    capsys.readouterr()
    assert main(["merge", "run", other]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert len(said.splitlines()) <= 2
    assert (Path("run") / "ledger").read_bytes() == before


@pytest.fixture
def from_files(tiny_gpt2: Path) -> Path:
    """Return an experiment file whose model and data lie beside it."""
    shutil.copytree(tiny_gpt2, "model")
    lines = [{"question": f"there are {n} apples", "answer": n} for n in range(3, 9)]
    value = {
        "name": "files", "model": {"plugin": "causal_lm", "path": "model", "device": "cpu"},
        "data": {"plugin": "problems", "path": str(write_lines(Path("p.jsonl"), lines))},
        "conditions": {"zero": {"intervention": {"plugin": "zero", "site": "resid_post@prompt"}, "sweep": {"layer": "all", "position": [-1, -2]}}},
        "controls": "none", "metrics": ["accuracy"], "generate": {"max_new_tokens": 2},
    }  # fmt: skip
    Path("files.yaml").write_text(json.dumps(value), encoding="utf-8")
    return Path("files.yaml")


@pytest.mark.parametrize("what", ["model", "data"])
def test_the_same_file_with_another_model_or_other_data_is_not_merged(what: str, from_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-q", str(from_files), "--output", "run", "--shard", "0/2"]) == 0
    if what == "model":
        shutil.rmtree("model")
        Path("other-model").mkdir()
        tiny.tiny_causal_lm(Path("other-model"), "gpt2", seed=5).rename("model")
    else:
        lines = Path("p.jsonl").read_text(encoding="utf-8")
        Path("p.jsonl").write_text(lines.replace("pears", "plums").replace("5 apples", "5 plums"), encoding="utf-8")
    assert main(["run", "-q", str(from_files), "--output", "other", "--shard", "1/2"]) == 0
    before = {str(p): p.read_bytes() for name in ("run", "other") for p in Path(name).rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(["merge", "run", "other"]) == 2
    said = capsys.readouterr().err
    words = {"model": r"other model files than run \(sha256 {}; changed: .*model\.safetensors\)\n", "data": r"other data than run \(sha256 {}\)\n"}[what]
    assert re.fullmatch("error: other: was computed with " + words.format("[0-9a-f]{12} there, [0-9a-f]{12} in other"), said)
    assert {str(p): p.read_bytes() for name in ("run", "other") for p in Path(name).rglob("*") if p.is_file()} == before


def test_merging_says_what_is_left_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    Path("e.yaml").write_text(json.dumps({**experiment(1, ["importance"]), "checks": {"no_nan": True}}), encoding="utf-8")
    assert main(["run", "-q", "e.yaml", "--output", "run"]) in (0, 3)

    def said() -> str:
        capsys.readouterr()
        assert main(["merge", "run"]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert said().endswith("next nothing is left to do")
    shutil.rmtree("run/results/checks")
    assert said().endswith("everything is committed; it evaluates the checks")
    shutil.rmtree("run/results/importance")
    assert said().endswith("everything is committed; it runs importance, then evaluates the checks")


def test_who_computes_a_run_without_a_share_is_told_of_shards() -> None:
    alive = {"0/3": "here pid 1", "2/3": "here pid 2"}
    words = "shard 0/3 (here pid 1), shard 2/3 (here pid 2); what they finish from now on is computed twice: "
    assert beside(alive) == f"{words}Ctrl-C, and --shard 1/3, leaves them their share"
    assert beside({"0/1": "here pid 1"}).endswith(": Ctrl-C leaves it to them, they finish it")


@pytest.mark.slow
def test_a_run_that_somebody_writes_is_not_merged(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-q", "e.yaml", "--output", "run", "--shard", "0/2"]) == 0
    lock = RunLock(Path("run/lock"))
    capsys.readouterr()
    assert main(["merge", "run"]) == 2
    assert "is being written by" in capsys.readouterr().err
    lock.release()
    assert main(["merge", "run", "run"]) == 2
    assert "is the run itself" in capsys.readouterr().err
