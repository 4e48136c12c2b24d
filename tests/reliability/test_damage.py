"""Damage: one changed byte, one cut or one missing file anywhere in a run is named, never read as data, and repaired to the same bytes."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codi_engine import Experiment, open_run
from codi_engine.core.errors import CodiEngineError, DifferentRun
from codi_engine.core.running import generations
from codi_engine.core.running.repairing import repair_run
from codi_engine.core.runs.verifying import verify_run
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import unit_of
from codi_engine.store.reader import RunReader
from codi_engine.testing import tiny
from tests.support.lines import few_problems

#: what stands in for what in a run, by where a file lies
KINDS = {
    "ledger": "ledger", "copies": "copies", "texts": "texts", "results": "results", "experiment.yaml": "metadata", "provenance.json": "metadata",
}  # fmt: skip


def made(folder: Path) -> Path:
    """Run a small experiment with everything in it: pairs, captures of several layers, sparse codes, texts, an analysis, two plans."""
    keys = {
        "name": "damaged", "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}, "data": {"plugin": "demo-pairs", "limit": 4},
        "intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": "all", "step": [0, 3]},
        "metrics": ["kl", "flip"], "capture": ["latent_out", "resid_post.1@latent[3]"], "generate": {"max_new_tokens": 8},
        "controls": "none", "analyses": ["importance"],
    }  # fmt: skip
    for limit in (2, 4):
        Experiment.from_dict({**keys, "data": {"plugin": "demo-pairs", "limit": limit}}).run(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    patch.setattr(generations, "UNIT_CELLS", 16)
    patch.setattr("codi_engine.core.running.run.UNIT_CELLS", 16, raising=False)
    yield made(tmp_path_factory.mktemp("damage"))
    patch.undo()


def files_of(path: Path) -> dict[str, bytes]:
    """Return every file but the log of events, which is for people and vouched for by nobody."""
    found = {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    found.pop("events.jsonl", None)
    return found


def kind_of(name: str) -> str:
    first = name.split("/")[0]
    return KINDS.get(first) or ("metadata" if name.endswith("zarr.json") else "shards")


def flip(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    # half of the flips go to the end, where a shard's index and an Arrow file's footer lie
    at = rng.randrange(len(raw)) if rng.random() < 0.5 else len(raw) - 1 - rng.randrange(min(64, len(raw)))
    raw[at] ^= rng.randrange(1, 256)
    path.write_bytes(bytes(raw))


def cut(path: Path, rng: random.Random) -> None:
    raw = path.read_bytes()
    lines = [i + 1 for i, b in enumerate(raw[:-1]) if b == 10] if path.name == "ledger" else []
    path.write_bytes(raw[: rng.choice(lines) if lines and rng.random() < 0.5 else rng.randrange(len(raw))])


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def read_all(path: Path, name: str) -> None:
    """Read what a file holds, as an analysis would."""
    reader = RunReader(path)
    place = unit_of(name)
    if place is not None and place[0] == "texts":
        reader.texts()
    elif place is not None:
        reader.read_unit(*place)
    elif name.endswith(".parquet"):
        stored = open_run(path).results[name.split("/")[1]]
        stored.table(Path(name).stem)
    elif name == "provenance.json":
        _ = reader.provenance


def chosen(files: dict[str, bytes], count: int, rng: random.Random) -> list[str]:
    """Choose files so that every kind has its share, whatever their number."""
    by: dict[str, list[str]] = {}
    for name in files:
        by.setdefault(kind_of(name), []).append(name)
    assert set(by) == {*KINDS.values(), "shards"}
    weights = {"shards": 4, "ledger": 3, "metadata": 2, "texts": 2, "results": 1, "copies": 1}
    kinds = rng.choices(list(by), [weights[k] for k in by], k=count)
    return [rng.choice(by[kind]) for kind in kinds]


def campaign(run: Path, copy: Path, damage: Callable[[Path, random.Random], None], count: int, seed: int) -> Counter[str]:
    """Damage one file after the other, each in an otherwise whole run; return how many of each kind were found. All must be."""
    rng, whole, found = random.Random(seed), files_of(run), Counter[str]()
    shutil.copytree(run, copy, dirs_exist_ok=True)
    for name in chosen(whole, count, rng):
        damage(copy / name, rng)
        findings = verify_run(copy)
        assert [f.file for f in findings if f.file == name], f"{damage.__name__} of {name} (seed {seed}) is not named; found {findings}"
        place = unit_of(name)
        assert all(f.unit == (None if place is None else place[1]) for f in findings if f.file == name)
        assert {f.file for f in findings} <= {name}, f"{damage.__name__} of {name} (seed {seed}): others are named: {findings}"
        if kind_of(name) != "copies" and Path(name).suffix not in (".png", ".svg", ".txt") and not name.endswith("result.json"):
            with pytest.raises((StoreError, CodiEngineError)):
                read_all(copy, name)
        (copy / name).write_bytes(whole[name])
        found[kind_of(name)] += 1
    assert not verify_run(copy)
    return found


def repairs(run: Path, copy: Path, rounds: int, faults: int, seed: int) -> tuple[int, int]:
    """Damage several files at once, repair, and compare every byte; returns (files damaged, units computed again)."""
    rng, whole = random.Random(seed), files_of(run)
    damaged = units = 0
    for _ in range(rounds):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        names = sorted({n for n in chosen(whole, faults, rng) if kind_of(n) not in ("copies", "results")})
        for name in names:
            rng.choice([flip, cut, delete])(copy / name, rng)
        wrong = {place[1] for n in names if (place := unit_of(n))}
        done = repair_run(copy)
        assert set(done.units) == wrong
        assert files_of(copy) == whole
        assert not verify_run(copy)
        damaged, units = damaged + len(names), units + len(wrong)
    return damaged, units


def test_a_few_faults_of_every_kind(run: Path, tmp_path: Path) -> None:
    for damage in (flip, cut, delete):
        campaign(run, tmp_path / "copy", damage, 12, 1)
    assert repairs(run, tmp_path / "copy", 1, 14, 2)[1] > 1


@pytest.mark.slow
def test_a_thousand_flips_and_two_hundred_cuts_and_deletions(run: Path, tmp_path: Path) -> None:
    flips = campaign(run, tmp_path / "copy", flip, 1_000, 3)
    cuts = campaign(run, tmp_path / "copy", cut, 130, 4) + campaign(run, tmp_path / "copy", delete, 130, 5)
    files, units = repairs(run, tmp_path / "copy", 40, 25, 6)
    print(f"\n{sum(flips.values())} flips {dict(flips)}, {sum(cuts.values())} cuts and deletions {dict(cuts)}: 0 undetected;", end=" ")
    print(f"{files} files damaged in 40 runs: all bytes restored, {units} units computed again")


def test_changed_weights_and_data_are_named_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint, base = tiny.tiny_codi(tmp_path / "model")
    weights, rng = checkpoint / "model.safetensors", random.Random(8)
    keys = {
        "name": "weights", "model": {"plugin": "codi", "checkpoint": str(checkpoint), "base": str(base), "lora_r": 4, "lora_alpha": 8, "device": "cpu"},
        "data": few_problems(tmp_path), "intervention": {"plugin": "zero", "site": "latent_in"}, "sweep": {"step": [0]},
        "metrics": ["kl"], "controls": "none",
    }  # fmt: skip
    experiment = Experiment.from_dict(keys)
    experiment.run("run")
    assert not verify_run(tmp_path / "run")
    whole = weights.read_bytes()
    for _ in range(10):
        flip(weights, rng)
        assert [(f.file, f.kind) for f in verify_run(tmp_path / "run")] == [("model.safetensors", "changed")]
        weights.write_bytes(whole)
    flip(weights, rng)
    with pytest.raises(DifferentRun, match="model"):
        experiment.run("run")
    flip(next((tmp_path / "run/data.zarr/cells/answer").glob("c.*")), rng)
    with pytest.raises(DifferentRun, match="model"):
        repair_run(tmp_path / "run")
    weights.unlink()
    assert {f.kind for f in verify_run(tmp_path / "run") if f.file == "model.safetensors" or f.file == "model"} == {"absent"}


def test_damaged_results_are_made_again(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    table = tmp_path / "copy/results/importance/effects.parquet"
    whole = table.read_bytes()
    flip(table, random.Random(0))
    assert [f.file for f in verify_run(tmp_path / "copy")] == ["results/importance/effects.parquet"]
    assert repair_run(tmp_path / "copy").results == ["importance"]
    assert table.read_bytes() == whole
    assert not repair_run(tmp_path / "copy")


def test_a_ledger_damaged_in_the_same_line_as_its_copy_is_put_aside(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    lines = (copy / "ledger").read_bytes().splitlines(keepends=True)
    bad = b"".join([*lines[:-2], lines[-2].replace(b'"rows"', b'"ROWS"'), lines[-1]])
    for name in ("ledger", "copies/ledger.copy"):
        (copy / name).write_bytes(bad)
    problems = {f.file: f.problem for f in verify_run(copy)}
    assert "and so is its copy" in problems["ledger"]
    done = repair_run(copy)
    assert done.kept == {"ledger": "ledger.damaged1", "copies/ledger.copy": "ledger.copy.damaged1"}
    for kept in done.kept.values():
        assert (copy / kept).read_bytes() == bad
        (copy / kept).unlink()
    Experiment.from_file(copy / "experiment.yaml").run(copy)  # the lost units are computed again by the same command
    assert {k: v for k, v in files_of(copy).items() if "results/" not in k and k not in ("provenance.json", "copies/provenance.copy")} == {
        k: v for k, v in files_of(run).items() if "results/" not in k and k not in ("provenance.json", "copies/provenance.copy")
    }
