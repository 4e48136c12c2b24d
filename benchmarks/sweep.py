"""Workloads A and B of a sweep at GPT-2-small size: one at a time, plain batching, codi-engine. CPU, random weights.

A: 8 pairs of 60 tokens × 12 layers × last 5 positions, residual patching, logits at the last token.
B: 8 problems × 6 latent steps × 10 donors on a CODI-like model, 12 decoded tokens.

The contenders give equal numbers (checked first, on the cells that all of them run), then are timed in turn in this
process. Slow contenders run every ``--every``-th cell and are scaled; the table says so.

    python benchmarks/sweep.py                     # prints the README's table
    python benchmarks/sweep.py --size small        # seconds
    python benchmarks/sweep.py --memory            # peak memory instead of time, one process per contender
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch

from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.rollout.wavefront import Edit
from codi_engine.core.sites import Site
from codi_engine.plugins.models.hf import describe, quiet

SIZES = {"small": (6, 256, 8, 2000), "gpt2": (12, 768, 12, 50257)}
POSITIONS, TOKENS, PAIRS, LATENTS, DONORS, NEW, ROWS = 5, 60, 8, 6, 10, 12, 48


def model(size: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads, vocabulary = SIZES[size]
    torch.manual_seed(0)
    with quiet():
        config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=256, initializer_range=0.04)
        return GPT2LMHeadModel(config).eval().requires_grad_(False)


class Work:
    """One model and the inputs of both workloads; results are kept per cell for the check."""

    def __init__(self, size: str, every: int) -> None:
        self.net_model = model(size)
        self.layers, self.width, self.heads, self.vocabulary = SIZES[size]
        generator = torch.Generator().manual_seed(1)
        self.clean = torch.randint(0, self.vocabulary, (PAIRS, TOKENS), generator=generator)
        self.corrupted = self.clean.clone()
        self.corrupted[:, 20:24] = torch.randint(0, self.vocabulary, (PAIRS, 4), generator=generator)
        self.projection = torch.nn.Sequential(
            torch.nn.Linear(self.width, self.width), torch.nn.GELU(), torch.nn.Linear(self.width, self.width), torch.nn.LayerNorm(self.width)
        )
        self.projection.requires_grad_(False)
        self.donors = torch.randn(PAIRS, DONORS, LATENTS, self.width, generator=generator) * 0.1
        self.every = every
        self.kept: dict[tuple[Any, ...], torch.Tensor] = {}
        self.base = (0.0, 0.0)  # CPU and wall seconds of a contender's unscaled part (its unpatched runs)
        self.cells_a = [(layer, p, i) for layer in range(self.layers) for p in range(-POSITIONS, 0) for i in range(PAIRS)]
        self.cells_b = [(k, d, i) for k in range(LATENTS) for d in range(DONORS) for i in range(PAIRS)]

    # ------------------------------------------------------------------------------------------- plain

    def use(self, attention: str) -> None:
        self.net_model.set_attn_implementation(attention)

    def clean_blocks(self) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = [torch.empty(0)] * self.layers
        handles = [
            b.register_forward_hook(lambda _, __, o, i=i: kept.__setitem__(i, o[:, -POSITIONS:].clone())) for i, b in enumerate(self.net_model.transformer.h)
        ]
        self.net_model(self.clean, use_cache=False, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        return kept

    def plain_a(self, batched: bool, every: int, keep: int = 1) -> float:
        """Patch by a hook per cell; ``keep`` 0 computes all logits; returns the factor that the timed part must be scaled by."""
        self.use("sdpa")
        begun = time.process_time(), time.perf_counter()
        values = self.clean_blocks()
        self.net_model(self.corrupted, use_cache=False, logits_to_keep=keep)
        self.base = time.process_time() - begun[0], time.perf_counter() - begun[1]
        groups = [(layer, p, None) for layer in range(self.layers) for p in range(-POSITIONS, 0)] if batched else self.cells_a
        chosen = groups[::every]
        for layer, p, i in chosen:
            rows = slice(None) if i is None else slice(i, i + 1)

            def hook(_: Any, __: Any, out: torch.Tensor, p: int = p, v: torch.Tensor = values[layer][rows]) -> torch.Tensor:
                out = out.clone()
                out[:, p] = v[:, p]
                return out

            handle = self.net_model.transformer.h[layer].register_forward_hook(hook)
            logits = self.net_model(self.corrupted[rows], use_cache=False, logits_to_keep=keep).logits[:, -1]
            handle.remove()
            for n, row in enumerate(logits):
                self.kept["A", layer, p, n if i is None else i] = row[:64].clone()
        return len(groups) / len(chosen)

    def plain_b(self, batched: bool, every: int, keep: int = 1) -> float:
        """Prefill, six latents with one swapped, twelve greedy tokens; ``keep`` 0 also computes the logits nobody reads."""
        from transformers import DynamicCache

        def state(**kwargs: Any) -> torch.Tensor:
            out: torch.Tensor = self.net_model.transformer(past_key_values=cache, use_cache=True, **kwargs).last_hidden_state
            if keep == 0:
                self.net_model.lm_head(out)
            return out[:, -1]

        self.use("sdpa")
        groups = [(k, d, None) for k in range(LATENTS) for d in range(DONORS)] if batched else self.cells_b
        chosen = groups[::every]
        for k, d, i in chosen:
            rows = slice(None) if i is None else slice(i, i + 1)
            cache = DynamicCache(config=self.net_model.config)
            c = state(input_ids=self.clean[rows])
            for step in range(LATENTS):
                z = self.donors[rows, d, step] if step == k else self.projection(c)
                c = state(inputs_embeds=z[:, None])
            token = torch.full((len(c), 1), 1)
            for number in range(NEW):
                out = self.net_model.transformer(token, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
                logits = self.net_model.lm_head(out)
                if number == 0:
                    for n, row in enumerate(logits):
                        self.kept["B", k, d, n if i is None else i] = row[:64].clone()
                token = logits.argmax(-1)[:, None]
        return len(groups) / len(chosen)

    # -------------------------------------------------------------------------------------------- ours

    def rollout(self, latent: bool) -> Rollout:
        info = describe(self.net_model.config, LATENTS if latent else 0, "float32", "cpu")
        nothing: Any = None
        adapter = ModelAdapter(
            info, self.net_model, nothing, nothing, nothing, projection=self.projection if latent else None, answer_start=(1,) if latent else ()
        )
        return Rollout(Network(adapter))

    def ours_a(self, *_: Any) -> float:
        rollout = self.rollout(False)
        prompts, places = self.corrupted.tolist(), tuple(range(-POSITIONS, 0))
        want = Want({("resid_post", "prompt"): (tuple(range(self.layers)), places)}, generate=False, read=False, first=False)
        values = rollout.run(self.clean.tolist(), [Task(i) for i in range(PAIRS)], want).captures
        rollout.run(prompts, [Task(i) for i in range(PAIRS)], Want(generate=False, read=False))

        def apply(group: int, site: Site, place: int, cells: Any, old: torch.Tensor) -> torch.Tensor:
            return values["resid_post", site.layer, "prompt"][[chunk[c][2] for c in cells], place + POSITIONS]

        by_place = sorted(self.cells_a, key=lambda cell: cell[1])
        for start in range(0, len(by_place), ROWS):
            chunk = by_place[start : start + ROWS]
            tasks = [Task(i, {"prompt": (Edit(Site("resid_post", layer), p, 0, layer),)}) for layer, p, i in chunk]
            logits = rollout.run(prompts, tasks, Want(generate=False, read=False), apply).first_logits
            for cell, row in zip(chunk, logits, strict=True):
                self.kept[("A", *cell)] = row[:64].clone()
        return 1.0

    def ours_b(self, *_: Any) -> float:
        rollout = self.rollout(True)
        prompts = self.clean.tolist()

        def apply(group: int, site: Site, place: int, cells: Any, old: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.donors[chunk[c][2], chunk[c][1], place] for c in cells])

        for start in range(0, len(self.cells_b), 5 * ROWS):
            chunk = self.cells_b[start : start + 5 * ROWS]
            tasks = [Task(i, {"latent": (Edit(Site("latent_in"), k, 0, d),)}) for k, d, i in chunk]
            want = Want(generate=True, read=False, max_new_tokens=NEW)
            for cell, row in zip(chunk, rollout.run(prompts, tasks, want, apply).first_logits, strict=True):
                self.kept[("B", *cell)] = row[:64].clone()
        return 1.0

    # ------------------------------------------------------------------------------------------- floor

    def floor(self, workload: str) -> float:
        """FLOPs that no correct method avoids: prompts once, and of each cell only what its edit can change."""
        token = 24 * self.width**2
        head = 2 * self.width * self.vocabulary
        if workload == "A":
            prefill = 2 * PAIRS * TOKENS * self.layers * token + PAIRS * head
            edited = sum((self.layers - 1 - layer) * -p * token + head for layer, p, _ in self.cells_a)
            return prefill + edited
        prefill = PAIRS * (TOKENS + LATENTS) * self.layers * token
        edited = sum((LATENTS - k + NEW) * self.layers * token + NEW * head for k, _, _ in self.cells_b)
        return prefill + edited


def matrix_rate() -> float:
    """FLOP/s of a matrix product of 256 × 768 × 3072, process CPU time, median of 20."""
    a, b = torch.randn(256, 768), torch.randn(768, 3072)
    times = []
    for _ in range(20):
        begun = time.process_time()
        a @ b
        times.append(time.process_time() - begun)
    return 2 * 256 * 768 * 3072 / statistics.median(times)


def contenders(work: Work, workload: str) -> dict[str, tuple[Callable[..., float], int]]:
    """Return name → (function, run every n-th cell)."""
    plain, ours = (work.plain_a, work.ours_a) if workload == "A" else (work.plain_b, work.ours_b)
    return {
        "one at a time, all logits (originals)": (lambda e: plain(False, e, 0), work.every * 8),
        "one at a time, last logits": (lambda e: plain(False, e), work.every * 8),
        "plain batching over examples": (lambda e: plain(True, e), work.every),
        "codi-engine": (ours, 1),
    }


@torch.inference_mode()
def compare(work: Work, workload: str, repeats: int) -> None:
    """Check that the contenders agree, then time them in turn and print the table."""
    table = contenders(work, workload)
    results = []
    for function, every in table.values():
        work.kept = {}
        function(every)
        results.append(work.kept)
    shared = set.intersection(*(set(r) for r in results))
    worst = max(float((r[cell] - results[0][cell]).abs().max()) for r in results[1:] for cell in shared)
    assert shared, "no cell in common"
    assert worst < 1e-3, f"contenders disagree by {worst}"
    print(f"\n{workload}: {len(work.cells_a if workload == 'A' else work.cells_b)} cells; max |Δlogit| {worst:.1e} over {len(shared)} common cells")
    cpu: dict[str, list[float]] = {name: [] for name in table}
    wall: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(repeats):
        for name, (function, every) in table.items():
            work.base = (0.0, 0.0)
            begun, wall_begun = time.process_time(), time.perf_counter()
            factor = function(every)
            cpu[name].append(work.base[0] + (time.process_time() - begun - work.base[0]) * factor)
            wall[name].append(work.base[1] + (time.perf_counter() - wall_begun - work.base[1]) * factor)
    slow, plain = (statistics.median(cpu[n]) for n in (next(iter(table)), list(table)[2]))
    share = work.floor(workload) / matrix_rate() / statistics.median(cpu["codi-engine"])
    print(f"{'':38}{'CPU s':>9}{'wall s':>9}{'× one at a time':>18}{'× plain batching':>18}")
    for name, (_, every) in table.items():
        seconds = statistics.median(cpu[name])
        note = f"   (every {every}th cell, scaled)" if every > 1 else f"   {share:.0%} of the arithmetic floor"
        print(f"{name:<38}{seconds:9.2f}{statistics.median(wall[name]):9.2f}{slow / seconds:18.1f}{plain / seconds:18.1f}{note}")


def memory_of(run: Callable[[], Any]) -> float:
    """Return the growth of resident memory (MB) while ``run`` runs, sampled every 2 ms."""

    def resident() -> float:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    base, peak, running = resident(), [0.0], [True]

    def watch() -> None:
        while running[0]:
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    run()
    running[0] = False
    thread.join()
    return peak[0] - base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", type=int, default=6, help="run every n-th cell of the slow contenders (8 × n one at a time)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        work = Work(args.size, args.every)
        function, every = contenders(work, args.only[0])[args.only[1]]
        with torch.inference_mode():
            print(f"{args.only[1]:<38}{memory_of(lambda: function(every)):9.0f} MB", flush=True)
        return
    print(f"torch {torch.__version__}, {args.threads} thread(s), {args.size} size, medians of {args.repeats}; {matrix_rate() / 1e9:.0f} GFLOP/s in GEMM")
    work = Work(args.size, args.every)
    for workload in ("A", "B"):
        if args.memory:
            print(f"\n{workload}: growth of resident memory")
            for name in contenders(work, workload):
                subprocess.run([sys.executable, __file__, "--size", args.size, "--every", str(args.every), "--only", workload, name], check=True)
        else:
            compare(work, workload, args.repeats)


if __name__ == "__main__":
    main()
