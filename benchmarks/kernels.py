"""Kernels and analyses against their peers: t-tests, sparse codes, rank tests, correlation, words, and a pass over a run on disk.

All contenders of a table run in turn in this process, several rounds; medians of wall time and CPU seconds are printed, ratios
to ours, and ours as a share of a physical limit measured in the same rounds. t-tests compute every p-value, as scipy does.
Slow contenders run on a part of the data and are scaled; the table says so. Peers that are not installed are left out.

    python benchmarks/kernels.py                          # all but disk
    python benchmarks/kernels.py ttest words
    python benchmarks/kernels.py disk --run runs/large    # a run made by `codi-engine synth runs/large --gaussian --words 0 …`
    python benchmarks/kernels.py fdr                      # false discoveries over 20 seeds
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

CONDITIONS, TRIALS, FEATURES = 6, 30, 2787
ALL_PAIRS = np.array([(a, b) for a in range(CONDITIONS) for b in range(a)])
AGAINST_FIRST = np.array([(c, 0) for c in range(1, CONDITIONS)])
PATHWAY, WORD = ["target", "feature", "condition"], ["target", "word", "condition"]
Contender = tuple[Callable[[], Any], float]


def have(*names: str) -> bool:
    """True when all these packages are installed."""
    return all(importlib.util.find_spec(n) is not None for n in names)


def race(contenders: dict[str, Contender], ours: str, limit: str, rounds: int, unit: str = "") -> dict[str, tuple[float, float]]:
    """Time contenders in turn (name → (function, factor to the whole)) and print a table; returns name → (wall, CPU)."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for function, _ in contenders.values():
        function()
    for _ in range(rounds):
        for name, (function, factor) in contenders.items():
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            times[name].append(((time.perf_counter() - wall) * factor, (time.process_time() - cpu) * factor))
    middle = {name: (statistics.median(t[0] for t in v), statistics.median(t[1] for t in v)) for name, v in times.items()}
    print(f"{'':44}{'wall ms':>10}{'CPU ms':>10}{'wall ×':>9}{'CPU ×':>9}{'share of limit':>16}{unit:>12}")
    for name, (wall, cpu) in middle.items():
        scaled = f" (× {contenders[name][1]:.3g})" if contenders[name][1] != 1 else ""
        ratio = f"{wall / middle[ours][0]:9.2f}{cpu / middle[ours][1]:9.2f}"
        print(f"{(name + scaled)[:43]:44}{wall * 1e3:10.1f}{cpu * 1e3:10.1f}{ratio}{middle[limit][0] / wall:16.0%}", flush=True)
    return middle


# --------------------------------------------------------------------------------------------------- data


def dense(targets: int, seed: int = 0) -> np.ndarray:
    """Residual-like values, target × condition × trial × feature, float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((targets, CONDITIONS, TRIALS, FEATURES), dtype=np.float32)
    x *= np.exp(rng.normal(0, 0.4, FEATURES)).astype(np.float32)
    return x + rng.normal(0, 0.5, FEATURES).astype(np.float32)


def codes(targets: int, density: float = 0.02, seed: int = 0) -> np.ndarray:
    """SAE-like codes: log-normal firing rates, log-normal magnitudes."""
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.normal(0, 1.5, FEATURES))
    rates = np.clip(rates * density / rates.mean(), 0, 0.9)
    fires = rng.random((targets, CONDITIONS, TRIALS, FEATURES), dtype=np.float32) < rates
    x = np.zeros(fires.shape, np.float32)
    x[fires] = 0.3 + np.exp(rng.standard_normal(int(fires.sum()), dtype=np.float32) * 0.7)
    return x


def sparse(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per target (ptr of its conditions, index, value)."""
    out = []
    for target in x:
        row, index = np.nonzero(target.reshape(-1, FEATURES))
        ptr = np.searchsorted(row, np.arange(CONDITIONS + 1) * TRIALS)
        out.append((ptr, index.astype(np.uint16), target.reshape(-1, FEATURES)[row, index]))
    return out


def each(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> None:
    """Apply a function to items in threads."""
    if threads == 1:
        for item in items:
            function(item)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, items))


# ------------------------------------------------------------------------------------------------- t-tests


def tested(x: np.ndarray, pairs: np.ndarray, threads: int) -> None:
    from codi_engine.kernels.moments import Moments
    from codi_engine.kernels.ttest import Tested, two_sample

    rooms = [Tested.empty(len(pairs), FEATURES) for _ in range(threads)]

    def some(number: int) -> None:
        for target in x[number::threads]:
            moments = Moments.empty(CONDITIONS, FEATURES)
            moments.add(target)
            two_sample(moments, pairs, "welch", 0.0, rooms[number])

    each(some, range(threads), threads)


def ttest(targets: int, threads: int, rounds: int) -> None:
    """All pairs of conditions, every p-value."""
    from scipy import special, stats

    x = dense(targets)
    few = max(targets // 6, 1)
    print(f"\nt-tests (Welch), {targets} targets × {CONDITIONS} conditions × {TRIALS} trials × {FEATURES:,} features, 15 pairs, all p-values")

    def by_scipy(pairs: np.ndarray, count: int) -> None:
        for a, b in pairs:
            stats.ttest_ind(x[:count, a], x[:count, b], axis=1, equal_var=False)

    def by_numpy() -> None:
        mean, var = x[:few].mean(2, dtype=np.float64), x[:few].var(2, ddof=1, dtype=np.float64) / TRIALS
        for a, b in ALL_PAIRS:
            v = var[:, a] + var[:, b]
            df = v * v / ((var[:, a] ** 2 + var[:, b] ** 2) / (TRIALS - 1))
            2 * special.stdtr(df, -np.abs((mean[:, a] - mean[:, b]) / np.sqrt(v)))

    def loop() -> None:
        for f in range(200):
            a, b = [float(v) for v in x[0, 1, :, f]], [float(v) for v in x[0, 0, :, f]]
            stats.ttest_ind(a, b)
            np.mean(a) - np.mean(b)

    contenders: dict[str, Contender] = {
        "memory read (limit)": (lambda: x.view(np.int32).max(), 1),
        "codi-engine, 1 thread": (lambda: tested(x, ALL_PAIRS, 1), 1),
        f"codi-engine, {threads} threads": (lambda: tested(x, ALL_PAIRS, threads), 1),
        "scipy.stats.ttest_ind, vectorised": (lambda: by_scipy(ALL_PAIRS, few), targets / few),
        "numpy float64 + scipy.special.stdtr": (by_numpy, targets / few),
        "the original loop, 200 of the tests": (loop, targets * len(ALL_PAIRS) * FEATURES / 200),
    }
    if have("dask"):
        contenders["dask"] = (lambda: dask_ttest(x[:few]), targets / few)
    race(contenders, "codi-engine, 1 thread", "memory read (limit)", rounds)
    print("\none pair of conditions")
    one = ALL_PAIRS[:1]
    race(
        {
            "memory read (limit)": (lambda: x.view(np.int32).max(), 1),
            "codi-engine, 1 thread": (lambda: tested(x, one, 1), 1),
            "scipy.stats.ttest_ind, vectorised": (lambda: by_scipy(one, targets), 1),
        },
        "codi-engine, 1 thread", "memory read (limit)", rounds,
    )  # fmt: skip
    if have("scanpy", "anndata"):
        print("\nfive pairs against one condition, as scanpy does it")
        race(
            {
                "memory read (limit)": (lambda: x.view(np.int32).max(), 1),
                "codi-engine, 1 thread": (lambda: tested(x, AGAINST_FIRST, 1), 1),
                "scanpy rank_genes_groups, t-test": (lambda: scanpy_ttest(x[:2]), targets / 2),
            },
            "codi-engine, 1 thread", "memory read (limit)", 1,
        )  # fmt: skip


def dask_ttest(x: np.ndarray) -> None:
    import dask
    import dask.array as da
    from scipy import special

    d = da.from_array(x, chunks=(4, CONDITIONS, TRIALS, FEATURES))
    mean, var = d.mean(2), d.var(2, ddof=1) / TRIALS
    out = []
    for a, b in ALL_PAIRS:
        v = var[:, a] + var[:, b]
        t = (mean[:, a] - mean[:, b]) / da.sqrt(v)
        df = v * v / ((var[:, a] ** 2 + var[:, b] ** 2) / (TRIALS - 1))
        out.append(da.map_blocks(lambda df, t: 2 * special.stdtr(df, -np.abs(t)), df, t))
    dask.compute(*out)


def annotated(target: np.ndarray) -> Any:
    import anndata
    import pandas as pd

    groups = pd.Categorical(np.repeat([f"c{i}" for i in range(CONDITIONS)], TRIALS))
    rows = target.reshape(-1, FEATURES)
    return anndata.AnnData(rows.copy(), obs=pd.DataFrame({"g": groups}, index=[str(i) for i in range(len(rows))]))


def scanpy_ttest(x: np.ndarray) -> None:
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target in x:
            scanpy.tl.rank_genes_groups(annotated(target), "g", reference="c0", method="t-test")


def codes_(targets: int, threads: int, rounds: int) -> None:
    """Sparse codes against our own dense path."""
    from codi_engine.kernels.moments import Moments
    from codi_engine.kernels.ttest import Tested, two_sample

    x = codes(targets)
    listed = sparse(x)
    rows = np.full(CONDITIONS, float(TRIALS))
    print(f"\nt-tests of codes, density {np.count_nonzero(x) / x.size:.3f}: stored sparse against dense, 1 thread")
    for pairs, beyond, name in ((ALL_PAIRS[:1], 1.959, "one pair, p where it can matter"), (ALL_PAIRS, 0.0, "15 pairs, every p")):
        room = Tested.empty(len(pairs), FEATURES)

        def by_codes(pairs: np.ndarray = pairs, beyond: float = beyond, room: Any = room) -> None:
            for ptr, index, value in listed:
                moments = Moments.empty(CONDITIONS, FEATURES)
                moments.add_codes(ptr, index, value, rows)
                two_sample(moments, pairs, "welch", beyond, room)

        def by_values(pairs: np.ndarray = pairs, beyond: float = beyond, room: Any = room) -> None:
            for target in x:
                moments = Moments.empty(CONDITIONS, FEATURES)
                moments.add(target)
                two_sample(moments, pairs, "welch", beyond, room)

        print(name)
        race(
            {"memory read, dense (limit)": (lambda: x.view(np.int32).max(), 1), "sparse": (by_codes, 1), "dense": (by_values, 1)},
            "sparse", "memory read, dense (limit)", rounds,
        )  # fmt: skip
    size = sum(i.nbytes + v.nbytes for _, i, v in listed)
    print(f"bytes: dense {x.nbytes / 1e6:.0f} MB, sparse {size / 1e6:.1f} MB (1/{x.nbytes / size:.0f})")


# --------------------------------------------------------------------------------------------------- ranks


def ranks(targets: int, threads: int, rounds: int) -> None:
    """Mann–Whitney, five pairs against the first condition."""
    from scipy import stats

    from codi_engine.kernels.ranks import mann_whitney_pairs, mann_whitney_sparse

    for name, x in (("dense", dense(targets)), ("codes", codes(targets))):
        print(f"\nMann–Whitney, {name}, {targets} targets × 5 pairs × {FEATURES:,} features, {TRIALS} trials")
        few = 100

        def by_scipy(x: np.ndarray = x, few: int = few) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for a, b in AGAINST_FIRST:
                    stats.mannwhitneyu(x[0, a, :, :few], x[0, b, :, :few], method="asymptotic", axis=0)

        contenders: dict[str, Contender] = {
            "memory read (limit)": (lambda x=x: x.view(np.int32).max(), 1),  # type: ignore[misc]
            "codi-engine, 1 thread": (lambda x=x: [mann_whitney_pairs(t, AGAINST_FIRST) for t in x], 1),  # type: ignore[misc]
            "scipy.stats.mannwhitneyu, 100 features": (by_scipy, targets * FEATURES / few),
        }
        if name == "codes":
            stored = [(*t, np.full(CONDITIONS, TRIALS), FEATURES, AGAINST_FIRST) for t in sparse(x)]
            contenders["codi-engine, stored sparse, 1 thread"] = (lambda s=stored: [mann_whitney_sparse(*t) for t in s], 1)  # type: ignore[misc]
        if have("illico", "anndata"):
            prepared = [annotated(t) for t in x[:8]]
            contenders["illico, 8 targets"] = (lambda p=prepared: illico_test(p), targets / 8)  # type: ignore[misc]
        race(contenders, "codi-engine, 1 thread", "memory read (limit)", rounds)


def illico_test(prepared: Sequence[Any]) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    import illico
    from loguru import logger

    logger.remove()
    logger.add(lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in prepared:
            illico.asymptotic_wilcoxon(data, is_log1p=False, group_keys="g", reference="c0", n_threads=1)


# --------------------------------------------------------------------------------------------- correlation


def correlation(rows: int, threads: int, rounds: int) -> None:
    """All pairs of columns, in memory and from Zarr."""
    from scipy.linalg import blas

    from codi_engine.kernels.correlation import Products

    x = np.random.default_rng(0).standard_normal((rows, FEATURES), dtype=np.float32)

    def ours(blocks: Any) -> np.ndarray:
        products = Products(FEATURES, threads=threads)
        for block in blocks:
            products.add(block)
        return products.matrix()

    def in_memory() -> np.ndarray:
        return ours(x[i : i + 4096] for i in range(0, rows, 4096))

    with tempfile.TemporaryDirectory() as folder:
        run = written(Path(folder) / "run", x)

        def from_zarr() -> np.ndarray:
            from codi_engine.core.runs.results import open_run
            from codi_engine.core.runs.vectors import Vectors
            from codi_engine.core.runs.work import Work

            vectors, work = Vectors(open_run(run), None, "benchmark"), Work(memory=1_000_000_000, threads=threads)
            read = work.read_ahead("benchmark", vectors.parts(work.piece), vectors.read_own)
            return ours(data.reshape(-1, FEATURES) for _, _, data in read)

        exact = np.corrcoef(x[:, :200].astype(np.float64), rowvar=False)
        error = np.abs(from_zarr()[:200, :200] - exact).max()
        print(f"\ncorrelation, {rows:,} rows × {FEATURES:,} columns, float32, {threads} threads; largest error {error:.1e}")
        contenders: dict[str, Contender] = {
            "ssyrk (limit)": (lambda: blas.ssyrk(1.0, x.T), 1),
            "codi-engine, in memory": (in_memory, 1),
            "codi-engine, from Zarr": (from_zarr, 1),
            "np.corrcoef, float32": (lambda: np.corrcoef(x, rowvar=False, dtype=np.float32), 1),
            "np.corrcoef, float64": (lambda: np.corrcoef(x, rowvar=False), 1),
        }
        if have("dask"):
            import dask.array as da

            contenders["dask.array.corrcoef"] = (lambda: da.corrcoef(da.from_array(x, chunks=(4096, FEATURES)).T).compute(), 1)
        race(contenders, "codi-engine, in memory", "ssyrk (limit)", rounds)


def written(path: Path, x: np.ndarray) -> Path:
    """Write rows as a run: one target, one condition, every row an example."""
    from codi_engine.store.layout import ArraySpec
    from codi_engine.store.unitfiles import Content
    from codi_engine.store.writer import RunWriter

    unit = 2048
    units = -(-len(x) // unit)
    axes = [ArraySpec(f"cells/{a}", ("cell",), (), "int32", -1, attrs={"labels": []}) for a in ("example", "condition")]
    rest = [ArraySpec("cells/status", ("cell",), (), "uint8", 0), ArraySpec("cells/answer", ("cell",), (), "float64", float("nan"))]
    values = ArraySpec("activations/x/value", ("cell", "width"), (x.shape[1],), "float32", float("nan"))
    with RunWriter.open(path, identity={}, unit_cells=unit, experiment="name: x\n", provenance={}) as writer:
        labels = {"cells/example": list(range(len(x))), "cells/condition": ["all"]}
        writer.add_plan({}, units, [*axes, *rest, values], labels)
        for u in range(units):
            rows = x[u * unit : (u + 1) * unit]
            example = np.arange(u * unit, u * unit + len(rows), dtype=np.int32)
            arrays = {"cells/example": example, "cells/condition": 0 * example, "cells/status": np.ones(len(rows), np.uint8)}
            writer.commit(u, "sweep", Content({**arrays, "cells/answer": np.full(len(rows), np.nan), "activations/x/value": rows}))
    return path


# --------------------------------------------------------------------------------------------------- words


def corpus(documents: int) -> list[str]:
    """Texts of 200 Zipfian words with capitals, sums and numbers; 2 % are not ASCII."""
    rng = np.random.default_rng(0)
    common = [*"abcdefghijklm", "the", "of", "to", "and", "bet", "stop", "slot", "machine", "win", "lose", "money", "game", "play", "again", "will"]
    names = np.array([*common, *("".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(3, 11))) for _ in range(20_000))], object)
    share = 1 / np.arange(1, len(names) + 1) ** 1.05
    out = []
    for _ in range(documents):
        words = names[rng.choice(len(names), 200, p=share / share.sum())]
        chance = rng.random(200)
        for k in np.flatnonzero(chance < 0.15):
            c = chance[k]
            words[k] = f"${int(c * 20000)}" if c < 0.05 else str(int(c * 1000)) if c < 0.08 else words[k].capitalize() + ("." if c < 0.12 else ",")
        out.append(" ".join(words))
    return [t + " café — naïve €5" if i % 50 == 0 else t for i, t in enumerate(out)]


def words(documents: int, threads: int, rounds: int) -> None:
    """Tokenise and count per group of 30 documents."""
    from codi_engine.kernels.counts import count, merge_counts
    from codi_engine.kernels.words import PATTERNS, Vocabulary, pack, tokenise

    texts = corpus(documents)
    data, offsets = pack(texts)
    groups = np.arange(documents) // 30
    number, pattern = int(groups[-1]) + 1, re.compile(PATTERNS["simple"])
    few = max(documents // 6 // 30 * 30, 30)
    print(f"\nwords, {documents:,} texts, {len(data) / 1e6:.0f} MB, {number:,} groups: tokens and counts per group")

    def part(bounds: tuple[int, int]) -> tuple[Any, Any]:
        a, b = bounds
        vocabulary = Vocabulary()
        ids, ends = tokenise(data, offsets[a : b + 1], vocabulary)
        return count(ids, ends, groups[a:b], number, len(vocabulary)), vocabulary

    def two() -> None:
        cuts = [documents * i // threads // 30 * 30 for i in range(threads)] + [documents]
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(part, itertools.pairwise(cuts)))
        common = Vocabulary()
        merge_counts([c for c, _ in found], [common.add(*v.arrays()) for _, v in found])

    def original() -> None:
        for g in range(0, few, 30):
            counter: Counter[str] = Counter()
            for text in texts[g : g + 30]:
                counter.update(pattern.findall(text.lower()))

    contenders: dict[str, Contender] = {
        "memory read (limit)": (lambda: data.max(), 1),
        "codi-engine, 1 thread": (lambda: part((0, documents)), 1),
        f"codi-engine, {threads} threads, merged": (two, 1),
        "re + Counter (the original)": (original, documents / few),
    }
    if have("polars"):
        contenders["polars extract_all + group_by"] = (lambda: polars_words(texts[:few], groups[:few], pattern.pattern), documents / few)
    if have("sklearn"):
        contenders["scikit-learn CountVectorizer"] = (lambda: sklearn_words(texts[:few], pattern.pattern), documents / few)
    middle = race(contenders, "codi-engine, 1 thread", "memory read (limit)", rounds)
    for name, (wall, cpu) in middle.items():
        print(f"  {name:44}{len(data) / 1e6 / wall:9.1f} MB/s {len(data) / 1e6 / cpu:9.1f} MB per CPU-second")


def polars_words(texts: list[str], groups: np.ndarray, pattern: str) -> None:
    import polars as pl

    frame = pl.DataFrame({"g": groups, "t": texts})
    frame.with_columns(pl.col("t").str.to_lowercase().str.extract_all(pattern)).explode("t").group_by(["g", "t"]).len()


def sklearn_words(texts: list[str], pattern: str) -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    CountVectorizer(token_pattern=pattern).fit_transform(texts)


# ---------------------------------------------------------------------------------------------------- disk


def disk(run: Path, threads: int, rounds: int, shares: Sequence[float]) -> None:
    """One pass of `pathways`' tests over a run, against reading the same files; each in a process of its own, cold."""
    print(f"\none pass over {run}, page cache emptied before each")
    for share in shares:
        found: dict[str, list[tuple[float, float, float]]] = {"raw": [], "pass": []}
        for _ in range(rounds):
            for what, times in found.items():
                command = [sys.executable, __file__, "--child", what, "--run", str(run), "--share", str(share), "--threads", str(threads)]
                size, seconds, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-3:]
                times.append((float(size), float(seconds), float(memory)))
        raw, ours = (statistics.median(t[1] for t in found[k]) for k in ("raw", "pass"))
        size = found["raw"][0][0]
        print(
            f"{size:7.1f} GB  raw read {raw:6.1f} s ({size / raw:.2f} GB/s)  pathways' pass {ours:6.1f} s ({size / ours:.2f} GB/s): "
            f"{raw / ours:.0%} of the raw read; peak memory {max(t[2] for t in found['pass']):.2f} GB",
            flush=True,
        )


def child(what: str, run: Path, share: float, threads: int) -> None:
    """Print (GB, seconds, peak GB) of reading a share of a run's targets raw, or of testing them."""
    from codi_engine.core.runs.results import open_run
    from codi_engine.core.runs.vectors import Vectors
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.comparing import Comparison, Design

    vectors = Vectors(open_run(run), None, "benchmark")
    work = Work(memory=2_000_000_000, threads=threads)
    parts = vectors.parts(work.piece)
    parts = parts[: max(round(len(parts) * share), 1)]
    store, last = vectors.run.store, parts[-1].last
    units = sorted(set((vectors.arrangement.slots[:last][vectors.arrangement.slots[:last] >= 0] // store.unit_cells).tolist()))
    files = [store.path / store.spec(vectors.array).shard(u) for u in units]
    size = sum(f.stat().st_size for f in files)
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    arrangement = vectors.arrangement
    by_example = len(arrangement.examples) > 1
    pairs = np.array(arrangement.pairs(None, "benchmark"))
    design = Design(pairs, "paired" if by_example else "welch", by_example, by_example, 0.05, None, 999, 0)
    comparison = Comparison(vectors, design, work)
    begun = time.perf_counter()
    if what == "raw":
        buffer = memoryview(bytearray(max(f.stat().st_size for f in files)))
        for file in files:
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass
    else:
        for _ in work.stream("tests", parts, comparison.read, comparison.compute):
            pass
    print(size / 1e9, time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


# ----------------------------------------------------------------------------------------------------- fdr


def fdr(seeds: int) -> None:
    """Count false discoveries of pathways and words at q = 0.05 over seeds, with independent and with correlated trials."""
    import pandas as pd

    from codi_engine.core.runs.analyzing import analyze
    from codi_engine.core.runs.synthetic import Synthetic, write_synthetic

    def shares(analysis: str, keys: dict[str, Any], options: dict[str, Any], truth: list[str]) -> np.ndarray:
        found = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = write_synthetic(Synthetic(seed=seed, **keys), Path(folder) / "run")
                result = analyze(run, analysis, **options)[0].result
                assert result is not None
                table = result.tables[analysis]
                planted = pd.read_parquet(run / "results" / "synth" / f"{analysis}.parquet")
                hits = table.merge(planted, on=truth)
                found.append((1 - len(hits) / len(table) if len(table) else 0.0, len(hits) / len(planted)))
        return np.array(found)

    print(f"\nfalse discoveries at q = 0.05, mean over {seeds} seeds ± standard error")
    base = {"targets": 40, "features": 300, "words": 0}
    cases: list[tuple[str, str, dict[str, Any], dict[str, Any], list[str]]] = [
        ("pathways, codes, one prompt, 30 trials", "pathways", {**base, "density": 0.1}, {}, PATHWAY),
        (
            "pathways, values, one prompt, 30 trials",
            "pathways",
            {**base, "sparse": False, "gaussian": True, "effect": 1.0},
            {},
            PATHWAY,
        ),
    ]
    clustered = {**base, "sparse": False, "gaussian": True, "examples": 20, "trials": 10, "icc": 0.3, "effect": 1.0}
    cases += [
        ("pathways, icc 0.3, 20 examples × 10 trials, by example", "pathways", clustered, {}, PATHWAY),
        ("  the same, trials taken for independent", "pathways", clustered, {"unit": "trial"}, PATHWAY),
        ("words, one prompt, 30 texts", "words", {**base, "features": 60, "words": 80}, {}, WORD),
        (
            "words, 20 examples × 5 texts, by example",
            "words",
            {**base, "features": 60, "words": 60, "examples": 20, "trials": 5},
            {},
            WORD,
        ),
    ]
    for name, analysis, keys, options, truth in cases:
        found = shares(analysis, keys, options, truth)
        error = found[:, 0].std(ddof=1) / np.sqrt(seeds)
        print(f"{name:58} FDR {found[:, 0].mean():.3f} ± {error:.3f}   recall {found[:, 1].mean():.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="ttest, sparse, ranks, correlation, words, disk, fdr")
    parser.add_argument("--targets", type=int, default=24)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--documents", type=int, default=36_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--shares", default="0.25,0.5,1", help="of the run's targets, for disk")
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.run, given.share, given.threads)
        return
    print(f"$ python benchmarks/kernels.py {' '.join(sys.argv[1:])}")
    tables: dict[str, Callable[[], None]] = {
        "ttest": lambda: ttest(given.targets, given.threads, given.rounds),
        "sparse": lambda: codes_(given.targets, given.threads, given.rounds),
        "ranks": lambda: ranks(given.targets, given.threads, given.rounds),
        "correlation": lambda: correlation(given.rows, given.threads, given.rounds),
        "words": lambda: words(given.documents, given.threads, given.rounds),
        "disk": lambda: disk(given.run, given.threads, given.rounds, [float(s) for s in given.shares.split(",")]),
        "fdr": lambda: fdr(given.seeds),
    }
    for name in given.tables or [n for n in tables if n not in ("disk", "fdr")]:
        if name not in tables:
            parser.error(f"there is no table '{name}'; there are {', '.join(tables)}")
        if name == "disk" and given.run is None:
            parser.error("disk needs --run")
        tables[name]()


if __name__ == "__main__":
    main()
