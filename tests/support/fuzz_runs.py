"""Run directories of strangers: ledger lines, shards, texts and metadata that are hostile and whose checksums are right all the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.support import mutations
from tests.support.fuzz_loaders import Loader, Tree, tree_of

CELLS = 4
NAN = float("nan")


def _runs(home: Path) -> list[Tree]:
    """A run of two plans: codes, metrics, a dense capture, sparse codes, texts, results, notes, events."""
    import pandas as pd

    from codi_engine.core.watching.notes import add_note
    from codi_engine.store.layout import ArraySpec
    from codi_engine.store.sparse import sparse_specs, to_codes
    from codi_engine.store.unitfiles import Content
    from codi_engine.store.writer import RunWriter

    path = home / "run"
    axes = [ArraySpec(f"cells/{a}", ("cell",), (), "int32", -1, attrs={"labels": []}) for a in ("example", "condition", "step")]
    dense = ArraySpec("activations/resid_post.1@latent/value", ("cell", "step", "width"), (2, 3), "float32", NAN, attrs={"coords": {"step": [0, 1]}})
    wide = ArraySpec("activations/resid_post.2@latent/value", ("cell", "width"), (3,), "float32", NAN, sparse=True)
    others = [ArraySpec("cells/status", ("cell",), (), "uint8", 0), *(ArraySpec(f"cells/{n}", ("cell",), (), "float64", NAN) for n in ("answer", "metrics/kl"))]
    specs = [*axes, *others, dense, wide, *sparse_specs("activations/sae", 5, {"coords": {"feature": [f"f{i}" for i in range(5)]}})]
    with RunWriter.open(
        path, identity={"seed": 0}, unit_cells=CELLS, experiment="name: x\nhypothesis: h\n", provenance={"versions": {"python": "3"}}
    ) as writer:
        for plan in range(2):
            labels: dict[str, Any] = {
                "cells/example": [f"e{i}" for i in range(3 + plan)],
                "cells/condition": ["baseline", "patch"],
                "cells/step": [0, 1, "0+1"],
            }
            writer.add_plan({"plan": plan}, 1, specs, labels)
            rng = np.random.default_rng(plan)
            codes: dict[str, Any] = {
                "cells/example": (np.arange(CELLS, dtype=np.int32) + plan) % 3,
                "cells/step": np.arange(CELLS, dtype=np.int32) // 2,
                "cells/condition": np.full(CELLS, plan, np.int32),
            }
            values = {"cells/status": np.ones(CELLS, np.uint8), "cells/answer": rng.normal(size=CELLS), "cells/metrics/kl": rng.normal(size=CELLS)}
            captured = {dense.name: rng.normal(size=(CELLS, 2, 3)).astype(np.float32), wide.name: rng.normal(size=(CELLS, 3)).astype(np.float32)}
            sparse = to_codes("activations/sae", np.where(rng.random((CELLS, 5)) < 0.5, 1.5, 0).astype(np.float32), plan, CELLS)
            texts: dict[str, Any] = {"key": [f"{plan}{i}" for i in range(CELLS)], "text": [f"é {i}" for i in range(CELLS)], "level": [1, 2, None, 3]}
            writer.commit(plan, "sweep" if plan else "baseline", Content(codes | values | captured | sparse, texts))
    folder = path / "results" / "effects"
    folder.mkdir(parents=True)
    pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}).to_parquet(folder / "table.parquet")
    about = {"analysis": "effects", "options": {"a": 1}, "runs": [{"path": "x", "digest": "y"}], "tables": ["table"], "figures": [], "files": [], "facts": {}}
    (folder / "result.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "summary.txt").write_text("kl 1.0\n", encoding="utf-8")
    add_note(path, "a note\n## 2024-01-01T00:00:00Z")
    (path / "events.jsonl").write_text('{"time":"t","event":"warning","text":"x"}\n{"time":"t","event":"unit","units":1}\n', encoding="utf-8")
    return [tree_of(path)]


# ------------------------------------------------------------------------------------------------------------- hostile


def chained(records: Sequence[Any]) -> bytes:
    """Return a ledger of these records whose chain is right."""
    from codi_engine.store import ledger

    out, chain = b"", hashlib.sha256(b"codi-engine ledger").hexdigest()
    for record in records:
        body = record if isinstance(record, str) else json.dumps(record, sort_keys=True, separators=(",", ":"))
        if len(body) > 2 and body.startswith("{"):
            line, chain = ledger._line(chain, body)
            out += line
    return out


def records_of(tree: Tree) -> list[dict[str, Any]]:
    """Return a ledger's records."""
    out = []
    for line in tree["ledger"].splitlines():
        record = json.loads(line)
        del record["chain"]
        out.append(record)
    return out


def restated(tree: Tree, changed: Tree) -> Tree:
    """Return the changed files with a ledger that vouches for them."""
    records = records_of(tree)
    for record in records:
        for name in record.get("files", {}):
            if name in changed:
                record["files"][name] = {"size": len(changed[name]), "sha256": hashlib.sha256(changed[name]).hexdigest()}
    return {**changed, "ledger": chained(records)}


def _ledger(rng: Random, tree: Tree, trees: Sequence[Tree]) -> Tree:
    if rng.random() < 0.1:
        return {"ledger": mutations.raw(rng, tree["ledger"])}
    records: Any = records_of(tree)
    for _ in range(rng.choice((1, 1, 2))):
        records = mutations.changed_value(rng, records)
    if not isinstance(records, list):
        records = [records]
    return {"ledger": chained([mutations.text_of(rng, r).decode("utf-8", "backslashreplace") for r in records])}


def _shards(rng: Random, tree: Tree, trees: Sequence[Tree]) -> Tree:
    """Change a shard or the texts; what a shard's codec checks is put right where that is possible."""
    from codi_engine.store.codec import _crc

    name = rng.choice([n for n in tree if "/c." in n or n.startswith("texts/")])
    data = tree[name]
    others = [c for n, c in tree.items() if "/c." in n]
    if name.startswith("texts/"):
        return restated(tree, {name: mutations.raw(rng, data, others)})
    if rng.random() < 0.5:
        body = mutations.raw(rng, data[:-4], others)
        return restated(tree, {name: body + _crc(body)})
    if rng.random() < 0.5 and ("/sae/" in name or ".2@" in name):  # packed: other values, packed again
        from numcodecs.zstd import Zstd

        plain = mutations.raw(rng, bytes(Zstd().decode(data)))
        return restated(tree, {name: bytes(Zstd(level=1, checksum=True).encode(plain * rng.choice((1, 1, 1, 5000))))})
    return restated(tree, {name: mutations.raw(rng, data, others)})


def _beside(rng: Random, tree: Tree, trees: Sequence[Tree]) -> Tree:
    """Change what lies beside the ledger: provenance (its own checksum right), results, notes, events, metadata."""
    from codi_engine.store.provenance import _checksum

    name = rng.choice([n for n in tree if "/c." not in n and not n.startswith("texts/") and n != "ledger"])
    if name == "provenance.json" and rng.random() < 0.8:
        content = json.loads(tree[name])
        del content["checksum"]
        content = mutations.changed_value(rng, {**content, "invocations": [{"stages": {}, "estimate": {}}]})
        if isinstance(content, dict):
            plain = json.loads(json.dumps(content, default=str))
            return {name: (json.dumps({**plain, "checksum": _checksum(plain)}, indent=2) + "\n").encode()}
    if name.endswith(".json"):
        return {name: mutations.json_text(rng, tree[name])}
    if name.endswith(".jsonl"):
        return {name: mutations.json_lines(rng, tree[name])}
    return {name: mutations.raw(rng, tree[name])}


# ------------------------------------------------------------------------------------------------------------- reading


def tried(*calls: Callable[[], Any]) -> None:
    """Make every call; refusals are what is expected, and the first is raised at the end."""
    from codi_engine.core.errors import UserError
    from codi_engine.store.errors import StoreError

    refused = None
    for call in calls:
        try:
            call()
        except (UserError, StoreError) as error:
            refused = refused or error
    if refused is not None:
        raise refused


def _read_store(folder: Path) -> None:
    from codi_engine.store.reader import RunReader

    reader = RunReader(folder)
    tried(lambda: reader.verify(), lambda: reader.slots, lambda: reader.texts(), lambda: [reader.labels(a) for a in ("example", "step")])
    for name in reader.specs:
        for unit in reader.committed:
            tried(lambda name=name, unit=unit: reader.read_unit(name, unit))  # type: ignore[misc]
    for unit in reader.committed:
        tried(lambda unit=unit: _into(reader, unit), lambda unit=unit: reader.codes_of("activations/sae", unit), lambda unit=unit: _texts(reader, unit))  # type: ignore[misc]
    if reader.is_sparse("activations/sae"):
        tried(lambda: reader.read_codes("activations/sae"))
    tried(*(lambda axis=axis: reader.codes(axis) for axis in ("example", "step")))


def _into(reader: Any, unit: int) -> None:
    out = np.zeros((2, 2, 3), np.float32)
    reader.read_into("activations/resid_post.1@latent/value", unit, np.array([0, 2]), out, np.array([1, 0]), unit + 1)


def _texts(reader: Any, unit: int) -> None:
    slots, data, bounds = reader.text_bytes(unit)
    assert len(bounds) == len(slots) + 1
    assert bounds[0] >= 0
    assert bounds[-1] <= len(data)
    assert (np.diff(bounds) >= 0).all()


def _read_run(folder: Path) -> None:
    from codi_engine import open_run

    run = open_run(folder)
    tried(lambda: run.cells, lambda: repr(run), lambda: run.to_xarray(), lambda: run.axes)
    tried(lambda: run.activations("resid_post.1@latent"), lambda: run.activations("sae"), lambda: run.activations("resid_post.2@latent", edited=True))


def _read_beside(folder: Path) -> None:
    from codi_engine import open_run
    from codi_engine.core.watching.status import status_of

    def everything() -> None:
        run = open_run(folder)
        tried(lambda: run.experiment, lambda: run.provenance, lambda: run.notes, *(lambda r=r: _result(r) for r in run.results.values()))

    def status() -> None:
        found = status_of(folder)
        found.to_dict()
        found.events()
        found.variance()

    tried(everything, status)


def _result(result: Any) -> None:
    tried(*(lambda name=name: result.table(name) for name in result.tables))
    result.is_of("x")
    repr(result)


def run_loaders() -> Iterator[Loader]:
    """Yield the loaders of run directories."""
    yield Loader("run-ledger", _runs, _read_store, 10_000, change=_ledger)
    yield Loader("run-shards", _runs, _read_store, 6_000, change=_shards)
    yield Loader("run-cells", _runs, _read_run, 3_000, change=lambda rng, tree, trees: (_ledger if rng.random() < 0.5 else _shards)(rng, tree, trees))
    yield Loader("run-beside", _runs, _read_beside, 4_000, change=_beside)
