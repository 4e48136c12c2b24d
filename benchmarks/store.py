"""Runs on disk against their peers: writing, reading, damage; and what safety costs a run.

`race`: every contender stores the same arrays (residual streams: units × 256 cells × 12 layers × steps × 768, float32; and
sparse codes), then reads them all, then one layer at one step. They run in turn in this process; what is read back is
compared first; medians of wall and CPU seconds. Every write ends when its files and folders are synchronised: those who do
not do so themselves are helped. 100 % is the faster of two plain file writes (one call or 4 MB a call, then fsync, one file
a unit). Damage is tried: single bytes are flipped in the largest files, and reading either raises, or not. Slow contenders
run once. Peers that are not installed are left out.

`share`: a run that captures every layer's residual stream, with checksums, fsync and ledger and without them (left out in
this process alone), in turn; the difference and their own time as shares of the whole. With the packaged demo model, and with random
weights at GPT-2-small size.

    python benchmarks/store.py                          # minutes
    python benchmarks/store.py --size small             # seconds
    python benchmarks/store.py race --dir /mnt/data     # on that disk
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

#: units, cells, layers, steps, width; width of the sparse codes
SIZES = {"tiny": (2, 8, 3, 2, 32, 400), "small": (3, 64, 12, 4, 768, 8_192), "full": (12, 256, 12, 6, 768, 24_576)}
DENSITY, FLIPS, PIECE = 0.005, 10, 4 << 20


def have(*names: str) -> bool:
    """True when all these packages are installed."""
    return all(importlib.util.find_spec(n) is not None for n in names)


# --------------------------------------------------------------------------------------------------- data


def residuals(size: str) -> list[np.ndarray]:
    """Return units of residual-like states: features of different scales, a few of them huge, growing over layers."""
    units, cells, layers, steps, width, _ = SIZES[size]
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(0, 0.5, width)).astype(np.float32)
    scale[rng.integers(0, width, max(width // 200, 1))] *= 50
    depth = np.linspace(1, 6, layers, dtype=np.float32)[:, None, None]
    return [rng.standard_normal((cells, layers, steps, width), np.float32) * scale * depth for _ in range(units)]


def codes(size: str) -> list[np.ndarray]:
    """Return units of SAE-like codes, cells × width."""
    units, cells, _, _, _, width = SIZES[size]
    rng = np.random.default_rng(1)
    rates = np.exp(rng.normal(0, 1.5, width))
    rates = np.clip(rates * DENSITY / rates.mean(), 0, 0.9).astype(np.float32)
    fires = (rng.random((cells, width), np.float32) < rates for _ in range(units))
    return [np.where(f, 0.3 + np.exp(rng.standard_normal(f.shape, np.float32) * 0.7), 0).astype(np.float32) for f in fires]


# ---------------------------------------------------------------------------------------------- contenders


def durable(folder: Path) -> None:
    """Synchronise every file and folder below ``folder``."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


class Contender:
    """Stores units one after another; ``index`` is (slice(None), layer, step), or (slice(None), slice of features)."""

    name = ""
    slow = False

    def __init__(self, units: Sequence[np.ndarray]) -> None:
        self.units = units
        self.cells, self.shape = len(units[0]), units[0].shape[1:]
        self.total = (len(units) * self.cells, *self.shape)

    def write(self, folder: Path) -> None:
        """Store the units, durably."""
        raise NotImplementedError

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        """Yield the units."""
        raise NotImplementedError

    def subset(self, folder: Path, index: tuple[Any, ...]) -> np.ndarray:
        """Return a part of all units."""
        return np.concatenate([unit[index].copy() for unit in self.read(folder)])


class Plain(Contender):
    name = "plain files, one call"
    piece = 1 << 40

    def write(self, folder: Path) -> None:
        folder.mkdir()
        for number, unit in enumerate(self.units):
            with (folder / str(number)).open("wb", buffering=0) as file:
                view, at = memoryview(unit).cast("B"), 0
                while at < len(view):
                    at += file.write(view[at : at + self.piece])
                os.fsync(file.fileno())

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        for number in range(len(self.units)):
            yield np.fromfile(folder / str(number), np.float32).reshape(self.units[0].shape)

    def subset(self, folder: Path, index: tuple[Any, ...]) -> np.ndarray:
        return np.concatenate([np.memmap(folder / str(n), np.float32, "r", shape=self.units[0].shape)[index] for n in range(len(self.units))])


class Pieces(Plain):
    name, piece = "plain files, 4 MB a call", PIECE


class Ours(Contender):
    name = "codi-engine"

    def write(self, folder: Path) -> None:
        from codi_engine.store.layout import ArraySpec
        from codi_engine.store.unitfiles import Content
        from codi_engine.store.writer import RunWriter

        spec = ArraySpec("activations/a/value", ("cell", *"xyz"[: len(self.shape)]), self.shape, "float32", float("nan"))
        with RunWriter.open(folder, identity={}, unit_cells=self.cells, experiment="", provenance={}) as writer:
            writer.add_plan({}, len(self.units), [spec], {})
            for number, unit in enumerate(self.units):
                writer.commit(number, "sweep", Content({spec.name: unit}))

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        from codi_engine.store.reader import RunReader

        reader = RunReader(folder)
        for number in range(len(self.units)):
            yield reader.read_unit("activations/a/value", number)


class OursChunks(Ours):
    name = "codi-engine, as analyses read"  # chunk by chunk, against the chunks' checksums, the next unit read ahead

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        from codi_engine.store.reader import RunReader

        reader, rows, out = RunReader(folder), np.arange(self.cells), np.empty_like(self.units[0])
        for number in range(len(self.units)):
            reader.read_into("activations/a/value", number, rows, out, rows, number + 1)
            yield out


class OursSparse(Ours):
    name = "codi-engine, sparse"

    def write(self, folder: Path) -> None:
        from codi_engine.store.layout import ArraySpec
        from codi_engine.store.sparse import sparse_specs, to_codes
        from codi_engine.store.unitfiles import Content
        from codi_engine.store.writer import RunWriter

        specs = [*sparse_specs("a", self.shape[0]), ArraySpec("cells/status", ("cell",), (), "uint8", 0)]
        with RunWriter.open(folder, identity={}, unit_cells=self.cells, experiment="", provenance={}) as writer:
            writer.add_plan({}, len(self.units), specs, {})
            for number, unit in enumerate(self.units):
                writer.commit(number, "sweep", Content({**to_codes("a", unit, number, self.cells), "cells/status": np.ones(self.cells, np.uint8)}))

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        from codi_engine.store.reader import RunReader
        from codi_engine.store.sparse import to_dense

        reader = RunReader(folder)
        for number in range(len(self.units)):
            yield to_dense(*reader.codes_of("a", number), self.shape[0])


class Zarr(Contender):
    """zarr-python as it comes."""

    name = "zarr, default"

    def options(self) -> dict[str, Any]:
        """Return what ``create_array`` is told beyond shape and type."""
        return {}

    def write(self, folder: Path) -> None:
        import zarr

        array = zarr.create_array(str(folder), shape=self.total, dtype="float32", **self.options())
        for number, unit in enumerate(self.units):
            array[number * self.cells : (number + 1) * self.cells] = unit
        durable(folder)

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        import zarr

        array = zarr.open_array(str(folder), mode="r")
        for number in range(len(self.units)):
            yield np.asarray(array[number * self.cells : (number + 1) * self.cells])

    def subset(self, folder: Path, index: tuple[Any, ...]) -> np.ndarray:
        import zarr

        array: Any = zarr.open_array(str(folder), mode="r")
        return np.asarray(array[index])


class ZarrShards(Zarr):
    name = "zarr, our codecs and shards"

    def options(self) -> dict[str, Any]:
        from zarr.codecs import Crc32cCodec

        rows = inner(self.cells, self.shape)
        return {"chunks": (rows, *self.shape), "shards": (self.cells, *self.shape), "compressors": [Crc32cCodec()], "config": {"write_empty_chunks": True}}


class Hdf5(Contender):
    name = "h5py, plain"
    options: dict[str, Any] = {}

    def write(self, folder: Path) -> None:
        import h5py

        folder.mkdir()
        for number, unit in enumerate(self.units):
            with h5py.File(folder / f"{number}.h5", "w") as file:
                file.create_dataset("a", data=unit, **self.options)
        durable(folder)

    def opened(self, folder: Path) -> Iterator[Any]:
        import h5py

        for number in range(len(self.units)):
            with h5py.File(folder / f"{number}.h5", "r") as file:
                yield file["a"]

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        for data in self.opened(folder):
            yield data[:]

    def subset(self, folder: Path, index: tuple[Any, ...]) -> np.ndarray:
        return np.concatenate([data[index] for data in self.opened(folder)])


class Gzip(Hdf5):
    name, slow, options = "h5py, gzip", True, {"compression": "gzip"}


class Npz(Contender):
    name = "npz"

    def save(self, path: Path, unit: np.ndarray) -> None:
        """Write one file."""
        np.savez(path, a=unit)

    def write(self, folder: Path) -> None:
        folder.mkdir()
        for number, unit in enumerate(self.units):
            self.save(folder / f"{number}.npz", unit)
        durable(folder)

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        for number in range(len(self.units)):
            with (folder / f"{number}.npz").open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                yield file["a"]


class NpzCompressed(Npz):
    name, slow = "npz, compressed", True

    def save(self, path: Path, unit: np.ndarray) -> None:
        np.savez_compressed(path, a=unit)


class Safetensors(Contender):
    name = "safetensors"

    def write(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        folder.mkdir()
        for number, unit in enumerate(self.units):
            save_file({"a": unit}, folder / f"{number}.safetensors")
        durable(folder)

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        from safetensors.numpy import load_file

        for number in range(len(self.units)):
            yield load_file(folder / f"{number}.safetensors")["a"]

    def subset(self, folder: Path, index: tuple[Any, ...]) -> np.ndarray:
        from safetensors import safe_open

        parts = []
        for number in range(len(self.units)):
            with safe_open(folder / f"{number}.safetensors", "np") as file:
                parts.append(file.get_slice("a")[index])
        return np.concatenate(parts)


class Tensorstore(Contender):
    name = "tensorstore, our codecs and shards"

    def opened(self, folder: Path, **options: Any) -> Any:
        """Return the array."""
        import tensorstore

        check = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [inner(self.cells, self.shape), *self.shape], "codecs": check, "index_codecs": check}
        grid = {"name": "regular", "configuration": {"chunk_shape": [self.cells, *self.shape]}}
        metadata = {"shape": self.total, "data_type": "float32", "chunk_grid": grid, "codecs": [{"name": "sharding_indexed", "configuration": sharding}]}
        store = {"driver": "file", "path": str(folder)}
        return tensorstore.open({"driver": "zarr3", "kvstore": store, "metadata": metadata}, **options).result()

    def write(self, folder: Path) -> None:
        array = self.opened(folder, create=True)
        for number, unit in enumerate(self.units):
            array[number * self.cells : (number + 1) * self.cells].write(unit).result()
        durable(folder)

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        array = self.opened(folder)
        for number in range(len(self.units)):
            yield array[number * self.cells : (number + 1) * self.cells].read().result()

    def subset(self, folder: Path, index: tuple[Any, ...]) -> np.ndarray:
        found: np.ndarray = self.opened(folder)[index].read().result()
        return found


def inner(cells: int, shape: tuple[int, ...]) -> int:
    """Return the rows of our inner chunks."""
    from codi_engine.store.layout import ArraySpec

    return ArraySpec("a", ("cell", *"xyz"[: len(shape)]), shape, "float32", 0).inner_rows(cells)


PLAIN: list[type[Contender]] = [Plain, Pieces]
ZARRS: list[type[Contender]] = [Zarr, ZarrShards]
FILES: list[type[Contender]] = [
    *([Hdf5, Gzip] if have("h5py") else []), Npz, NpzCompressed,
    *([Safetensors] if have("safetensors") else []), *([Tensorstore] if have("tensorstore") else []),
]  # fmt: skip


# --------------------------------------------------------------------------------------------------- race


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def noticed(contender: Contender, folder: Path) -> str:
    """Flip single bytes of the largest files and say of how many the reading said so; every file is put back."""
    largest = sorted((p for p in folder.rglob("*") if p.is_file() and p.parent.name != "copies"), key=lambda p: p.stat().st_size)[-4:]
    rng = np.random.default_rng(2)
    raised = 0
    for trial in range(FLIPS):
        path = largest[trial % len(largest)]
        at = int(rng.integers(0, path.stat().st_size))
        with path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 1 << int(rng.integers(0, 8))]))
        try:
            for _ in contender.read(folder):
                pass
        except Exception:  # whatever a library raises, it has noticed
            raised += 1
        with path.open("r+b") as file:
            file.seek(at)
            file.write(old)
    return f"{raised}/{FLIPS}"


def race(title: str, contenders: Sequence[Contender], index: tuple[Any, ...], place: Path, rounds: int, plain: Sequence[str]) -> dict[str, dict[str, float]]:
    """Check, time and print; returns name → {write, scan, subset, …}."""
    size = sum(unit.nbytes for unit in contenders[0].units)
    expected = np.concatenate([unit[index] for unit in contenders[0].units])
    times: dict[str, dict[str, list[tuple[float, float]]]] = {c.name: {"write": [], "scan": [], "subset": []} for c in contenders}
    facts: dict[str, tuple[int, int, str]] = {}
    for number, contender in enumerate(contenders):  # equal values first
        folder = place / f"check-{number}"
        contender.write(folder)
        assert all(np.array_equal(a, b) for a, b in zip(contender.read(folder), contender.units, strict=True)), contender.name
        assert np.array_equal(contender.subset(folder, index), expected), contender.name
        files = [p for p in folder.rglob("*") if p.is_file()]
        facts[contender.name] = sum(p.stat().st_size for p in files), len(files), noticed(contender, folder)
        shutil.rmtree(folder)
    for turn in range(rounds):
        first = turn % len(contenders)
        for number, contender in [*enumerate(contenders)][first:] + [*enumerate(contenders)][:first]:
            if contender.slow and turn:
                continue
            folder, found = place / f"{turn}-{number}", times[contender.name]
            os.sync()
            found["write"].append(timed(partial(contender.write, folder)))
            found["scan"].append(timed(partial(deque, contender.read(folder), 0)))
            found["subset"].append(timed(partial(contender.subset, folder, index)))
            shutil.rmtree(folder)
    middle = {
        name: {f"{what} {kind}": statistics.median(t[i] for t in v) for what, v in found.items() for i, kind in enumerate(("wall", "cpu"))}
        for name, found in times.items()
    }
    limit = min(middle[name]["write wall"] for name in plain)
    print(f"\n{title}, {size / 1e6:,.0f} MB, medians of {rounds}")
    print(
        f"{'':36}{'write s':>9}{'CPU s':>8}{'GB/s':>7}{'of plain':>10}{'scan s':>9}{'CPU s':>8}{'subset s':>10}{'CPU s':>8}{'MB':>10}{'files':>7}{'damage':>9}"
    )
    for contender in contenders:
        m, (stored, files_, seen) = middle[contender.name], facts[contender.name]
        m["share"] = limit / m["write wall"]
        once = " (once)" if contender.slow else ""
        print(
            f"{contender.name + once:36}{m['write wall']:9.3f}{m['write cpu']:8.3f}{size / m['write wall'] / 1e9:7.2f}{m['share']:10.0%}"
            f"{m['scan wall']:9.3f}{m['scan cpu']:8.3f}{m['subset wall']:10.3f}{m['subset cpu']:8.3f}{stored / 1e6:10.1f}{files_:7}{seen:>9}",
            flush=True,
        )
    return middle


def races(size: str, place: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Race over dense states and over sparse codes."""
    plain = [c.name for c in PLAIN]
    states = residuals(size)
    layers, steps = states[0].shape[1:3]
    everyone = [make(states) for make in [*PLAIN, Ours, OursChunks, *ZARRS, *FILES]]
    found = race("residual streams; subset: one layer, one step", everyone, (slice(None), layers // 2, steps // 2), place, rounds, plain)
    sparse = codes(size)
    some = [make(sparse) for make in [*PLAIN, OursSparse, *ZARRS, *FILES]]
    race(f"codes, {DENSITY:.1%} of them not zero; subset: 100 features", some, (slice(None), slice(100, 200)), place, rounds, plain)
    return found


# -------------------------------------------------------------------------------------------------- share


class Clock:
    """Wall and CPU seconds inside certain calls; of nested ones the outermost counts."""

    def __init__(self, unless: Clock | None = None) -> None:
        self.wall, self.cpu = 0.0, 0.0
        self._unless, self._inside, self._lock = unless, threading.local(), threading.Lock()

    @property
    def running(self) -> bool:
        """True while this thread is in such a call."""
        return getattr(self._inside, "yes", False)

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``real``, timed (but not within the calls of ``unless``)."""

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            if self.running or (self._unless is not None and self._unless.running):
                return real(*args, **kwargs)
            self._inside.yes = True
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return real(*args, **kwargs)
            finally:
                with self._lock:
                    self.wall += time.perf_counter() - wall
                    self.cpu += time.thread_time() - cpu
                self._inside.yes = False

        return timed_call


class Hash:
    """A sha256 that adds up to a clock what it takes, or computes nothing."""

    def __init__(self, data: Any = b"", clock: Clock | None = None) -> None:
        import hashlib

        self._real, self._clock = hashlib.sha256(), clock
        self.update(data)

    def update(self, data: Any) -> None:
        """Take bytes."""
        if self._clock is not None:
            self._clock.around(self._real.update)(data)

    def hexdigest(self) -> str:
        """Return the digest; of nothing where nothing is computed."""
        return self._real.hexdigest()


class Clocks:
    """What is measured of a run: checksums, fsync and ledger in all threads; whole commits; fsync outside them."""

    def __init__(self) -> None:
        self.own, self.commits = Clock(), Clock()
        self.elsewhere = Clock(self.commits)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure while the context lasts."""
        from codi_engine.store import codec, files, ledger, writer

        main, sync = threading.main_thread(), os.fsync
        elsewhere, own = self.elsewhere.around(sync), self.own
        hashes = mock.Mock(sha256=lambda data=b"": Hash(data, own))

        def fsync(descriptor: int) -> None:
            (elsewhere if threading.current_thread() is main else sync)(descriptor)

        with (
            mock.patch.object(codec, "_crc", own.around(codec._crc)), mock.patch.object(files, "hashlib", hashes),
            mock.patch.object(os, "fsync", own.around(fsync)),
            mock.patch.object(ledger.Ledger, "append", own.around(ledger.Ledger.append)),
            mock.patch.object(writer.RunWriter, "commit", self.commits.around(writer.RunWriter.commit)),
        ):  # fmt: skip
            yield


@contextmanager
def unsafe(commits: Clock) -> Iterator[None]:
    """Leave out checksums, fsync and the ledger's file; time commits."""
    from codi_engine.store import codec, files, ledger, writer

    def remember(self: Any, record: dict[str, Any]) -> dict[str, Any]:
        self._size = self._size or 1  # no longer empty
        self.path.touch()
        return dict(json.loads(ledger.canonical(record)))

    with (
        mock.patch.object(codec, "_crc", return_value=bytes(4)), mock.patch.object(files, "hashlib", mock.Mock(sha256=Hash)),
        mock.patch.object(os, "fsync"), mock.patch.object(ledger.Ledger, "append", remember),
        mock.patch.object(writer.RunWriter, "commit", commits.around(writer.RunWriter.commit)),
    ):  # fmt: skip
        yield


def experiments(size: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return experiments that capture every layer's residual stream, of the demo model and of GPT-2-small's size."""
    demo = {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}
    patch = {"plugin": "patch", "site": "resid_post@latent", "direction": "denoise"}
    shared = {"name": "share", "capture": ["resid_post@latent"], "generate": {"max_new_tokens": 8}, "controls": "none", "analyses": []}
    limit = {"tiny": 2, "small": 16, "full": 80}[size]
    sweep = {"layer": [0, 2], "step": [1]} if size == "tiny" else {"layer": "all", "step": "all"}
    found = {
        f"demo model, {limit} pairs": {
            **shared,
            "model": demo,
            "data": {"plugin": "demo-pairs", "limit": limit},
            "intervention": patch,
            "sweep": sweep,
            "metrics": ["kl"],
        }
    }
    if size != "tiny":
        model = {"plugin": "causal_lm", "path": str(random_gpt2(folder / "gpt2")), "device": "cpu"}
        problems = {"small": 16, "full": 96}[size]
        data = {"plugin": "demo-problems", "limit": problems}
        found[f"GPT-2-small size, {problems} prompts"] = {
            **shared,
            "model": model,
            "data": data,
            "capture": ["resid_post@prompt"],
            "metrics": ["accuracy"],
        }
    return found


def random_gpt2(folder: Path) -> Path:
    """Write random weights of GPT-2-small's size with a small tokenizer."""
    from codi_engine.core.libraries import quiet
    from codi_engine.testing.tiny import network, write_tokenizer

    folder.mkdir()
    write_tokenizer(folder)
    with quiet():
        network("gpt2", 50_257, layers=12, width=768, heads=12, spread=0.02).save_pretrained(folder)
    return folder


def shares(size: str, place: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Print what checksums, fsync and ledger take of runs; returns experiment → its shares of CPU and of wall time."""
    from codi_engine import Experiment
    from codi_engine.core.running.run import run_experiment

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        table = experiments(size, Path(folder))
        for name, value in table.items():
            experiment = Experiment.from_dict(value)
            run_experiment(experiment, place / "first")  # whatever is loaded or compiled once
            written = sum(p.stat().st_size for p in (place / "first").rglob("*") if p.is_file())
            safe, bare = [], []
            for turn in range(rounds):
                clocks, commits = Clocks(), Clock()
                with clocks.watching():
                    taken = timed(partial(run_experiment, experiment, place / f"safe-{turn}"))
                safe.append((*taken, clocks.own.cpu, clocks.commits.wall, clocks.elsewhere.wall))
                with unsafe(commits):
                    bare.append((*timed(partial(run_experiment, experiment, place / f"bare-{turn}")), commits.wall))
            wall, cpu, own, commit, elsewhere = np.median(safe, 0)
            bare_wall, bare_cpu, bare_commit = np.median(bare, 0)
            waits = commit - bare_commit + elsewhere
            found[name] = float(own / cpu), float(waits / wall)
            print(f"\n{name}: {written / 1e6:,.0f} MB in {wall:.2f} s wall, {cpu:.2f} s CPU, medians of {rounds}")
            print(f"  checksums, fsync and ledger: {own:.3f} s CPU, {own / cpu:.1%} of the run's; {waits:.3f} s wall, {waits / wall:.1%}")
            print(f"  commits {commit:.3f} s wall ({commit / wall:.1%}), {bare_commit:.3f} s without them; fsync outside commits {elsewhere:.3f} s")
            print(f"  whole run without them: {bare_wall:.2f} s wall, {bare_cpu:.2f} s CPU", flush=True)
            for path in place.iterdir():
                shutil.rmtree(path)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="race, share")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to be measured (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    print(f"$ python benchmarks/store.py {' '.join(sys.argv[1:] if arguments is None else arguments)}")
    tables: dict[str, Callable[[Path], Any]] = {
        "race": lambda place: races(given.size, place, given.rounds),
        "share": lambda place: shares(given.size, place, given.rounds),
    }
    for name in given.tables or tables:
        if name not in tables:
            parser.error(f"there is no table '{name}'; there are {', '.join(tables)}")
        with tempfile.TemporaryDirectory(dir=given.dir, prefix="codi-engine-store-") as place:
            tables[name](Path(place))


if __name__ == "__main__":
    main()
