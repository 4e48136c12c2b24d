"""Studies on the demo model: whole runs of codi-engine against a plain loop, one generation at a time.

resample: problems × 6 latent steps × 10 donors, the donor's latent put in place of the model's own, 12 decoded tokens.
ablation: problems × 6 cumulative sets of steps ([0], [0, 1], …), block 2's output set to zero there, 12 decoded tokens.

The loop is transformers as studies use it: one prompt, its KV cache, a forward hook, greedy decoding token by token. Donors'
latents are computed before it is timed. ``lean`` leaves out logits and hidden states that nobody reads. codi-engine is timed
from ``Experiment.run`` to the run on disk: loading, baselines of the whole pool, gate, extraction and writing included.
Texts are compared first, on the loop's own cells; it is timed on a random sample of cells.

    python benchmarks/studies.py                   # one thread, medians of three, then the peak memory of a fresh process
    python benchmarks/studies.py --problems 20 --sample 30 --repeats 1
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import numpy as np
import torch

from codi_engine import Experiment
from codi_engine.core.planning.preparing import prepare
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.solutions.answers import extract
from codi_engine.plugins.models.codi import Codi, CodiOptions

LATENTS, DONORS, NEW, LAYER = 6, 10, 12, 2
STUDIES: dict[str, dict[str, Any]] = {
    "resample": {
        "intervention": {"plugin": "resample", "site": "latent_in"},
        "sweep": {"step": "all", "donor": DONORS},
        "metrics": ["accuracy", "flip", "equals_other"],
    },
    "ablation": {
        "intervention": {"plugin": "zero", "site": f"resid_post.{LAYER}"},
        "sweep": {"step": ["cumulative"]},
        "metrics": ["accuracy", "flip"],
    },
}


@dataclass(frozen=True)
class Wanted:
    """One generation of a study: the prompt, the steps edited, and the donor's prompt (resample)."""

    example: str
    steps: tuple[int, ...]
    number: int | None = None
    donor: str | None = None


def write_problems(path: Path) -> None:
    """Write the demo's held-out problems and both sides of its pairs, each question once."""
    folder = files("codi_engine.plugins") / "demo"
    records = [json.loads(line) for line in (folder / "problems.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        records += [json.loads(line)[side] for side in ("clean", "corrupted")]
    unique = {r["question"]: {"id": str(i), "question": r["question"], "answer": r["answer"]} for i, r in enumerate(records)}
    path.write_text("".join(json.dumps(r) + "\n" for r in unique.values()), encoding="utf-8")


class Study:
    """One study: its experiment, its generations, and the plain loop over them."""

    def __init__(self, name: str, problems: int, path: Path) -> None:
        self.name = name
        self.experiment = Experiment.from_dict(
            {
                "name": name,
                "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
                "data": {"plugin": "problems", "path": str(path), "limit": problems},
                "generate": {"max_new_tokens": NEW},
                "controls": "none",
                **STUDIES[name],
            }
        )
        plan = prepare(self.experiment, plugin_manager(load=False)).plan
        self.texts = {e.id: e.prompts["main"].text for e in plan.data.pool}
        condition = plan.conditions[0]
        self.wanted: list[Wanted] = []
        for example in (e.id for e in plan.data.examples):
            if name == "ablation":
                self.wanted += [Wanted(example, tuple(range(k + 1))) for k in range(LATENTS)]
                continue
            for number in range(DONORS):
                donor = plan.donors.of(example, condition, {"donor": number})
                self.wanted += [Wanted(example, (k,), number, donor) for k in range(LATENTS)]

    # -------------------------------------------------------------------------------------------- ours

    def run(self) -> tuple[dict[tuple[str, tuple[int, ...], int | None], str], float, float]:
        """Run the study; returns (example, steps, donor) → text, wall seconds and CPU seconds."""
        with tempfile.TemporaryDirectory(prefix="codi-engine-bench-") as folder:
            begun, cpu = time.perf_counter(), time.process_time()
            finished = self.experiment.run(Path(folder) / "run")
            wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
            cells = finished.open().cells
        cells = cells[cells["condition"] != "baseline"]
        donors = cells["donor"] if "donor" in cells else [None] * len(cells)
        texts = {
            (str(e), tuple(int(s) for s in str(k).split("+")), None if d is None else int(d)): str(t)
            for e, k, d, t in zip(cells["example"], cells["step"], donors, cells["text"], strict=True)
        }
        return texts, wall, cpu

    # ------------------------------------------------------------------------------------ one at a time

    @cached_property
    def adapter(self) -> Any:
        return Codi(CodiOptions(checkpoint="demo", device="cpu")).load()

    def forward(self, cache: Any, lean: bool, **inputs: Any) -> torch.Tensor:
        """One forward; returns the last position's final-norm state."""
        network = self.adapter.network
        if lean:
            out: torch.Tensor = network.transformer(past_key_values=cache, use_cache=True, **inputs).last_hidden_state
            return out[:, -1]
        states: tuple[torch.Tensor, ...] = network(past_key_values=cache, use_cache=True, output_hidden_states=True, **inputs).hidden_states
        return states[-1][:, -1]

    def latents(self, example: str) -> torch.Tensor:
        """Return z_0 … z_5 of an example, unedited."""
        return torch.cat(self.think(example, (), None, True)[1])

    def think(self, example: str, steps: tuple[int, ...], donor: torch.Tensor | None, lean: bool) -> tuple[Any, list[torch.Tensor]]:
        """Prefill and the latent loop, edited; returns the cache and what the steps consumed."""
        from transformers import DynamicCache

        adapter = self.adapter
        cache = DynamicCache(config=adapter.network.config)
        c = self.forward(cache, lean, input_ids=torch.tensor([adapter.encode_prompt(self.texts[example])]))
        consumed = []
        for step in range(LATENTS):
            z = donor[step][None] if donor is not None and step in steps else adapter.projection(c)
            consumed.append(z)
            hook = None
            if donor is None and step in steps:
                hook = adapter.network.transformer.h[LAYER].register_forward_hook(lambda _, __, out: torch.zeros_like(out))
            c = self.forward(cache, lean, inputs_embeds=z[:, None])
            if hook is not None:
                hook.remove()
        return cache, consumed

    def generate(self, wanted: Wanted, donors: dict[str, torch.Tensor], lean: bool) -> tuple[str, float | None]:
        """One edited generation from prompt to answer."""
        adapter = self.adapter
        cache, _ = self.think(wanted.example, wanted.steps, donors[wanted.donor] if wanted.donor else None, lean)
        feed, tokens = list(adapter.answer_start), []
        for _ in range(NEW):
            ids = torch.tensor([feed])
            if lean:
                logits = adapter.network.lm_head(self.forward(cache, lean, input_ids=ids))[0]
            else:
                logits = adapter.network(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1]
            token = int(logits[: adapter.banned_ids_from].argmax())
            if token in adapter.stop_ids:
                break
            tokens.append(token)
            feed = [token]
        text = adapter.decode(tokens)
        return text, extract(text).value

    @torch.inference_mode()
    def loop(self, sample: list[Wanted], lean: bool) -> tuple[list[str], float, float]:
        """Generate the sample one at a time; returns texts, wall and CPU seconds, both scaled to the whole study."""
        donors = {d: self.latents(d) for d in {w.donor for w in sample} if d is not None}
        begun, cpu = time.perf_counter(), time.process_time()
        texts = [self.generate(w, donors, lean)[0] for w in sample]
        factor = len(self.wanted) / len(sample)
        return texts, (time.perf_counter() - begun) * factor, (time.process_time() - cpu) * factor


def check(study: Study, sample: list[Wanted]) -> None:
    """Every text of the sample must be the same from the loop, lean or not, and from the run."""
    ours, _, _ = study.run()
    assert len(ours) == len(study.wanted), f"{len(ours)} cells, {len(study.wanted)} wanted"
    for lean in (False, True):
        texts, _, _ = study.loop(sample, lean)
        different = [(w, ours[w.example, w.steps, w.number], t) for w, t in zip(sample, texts, strict=True) if ours[w.example, w.steps, w.number] != t]
        assert not different, f"{len(different)} of {len(sample)} texts differ, first: {different[0]}"
    assert len({ours[w.example, w.steps, w.number] for w in sample}) > 1


def compare(name: str, args: argparse.Namespace) -> None:
    """Check, time the contenders in turn, print generations per second and ratios."""
    study = Study(name, args.ablated if name == "ablation" else args.problems, args.path)
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(study.wanted), min(args.sample, len(study.wanted)), replace=False)
    sample = [study.wanted[i] for i in chosen]
    check(study, sample)
    count = len(study.wanted)
    print(f"\n{name}: {count:,} generations; equal texts on {len(sample)}, on which the loop is timed")
    seconds: dict[str, list[tuple[float, float]]] = {"one at a time": [], "one at a time, lean": [], "codi-engine, whole run": []}
    for _ in range(args.repeats):
        for label, lean in (("one at a time", False), ("one at a time, lean", True)):
            seconds[label].append(study.loop(sample, lean)[1:])
        seconds["codi-engine, whole run"].append(study.run()[1:])
    medians = {label: [statistics.median(column) for column in zip(*values, strict=True)] for label, values in seconds.items()}
    ours = medians["codi-engine, whole run"]
    print(f"{'':28}{'wall s':>9}{'CPU s':>9}{'per second':>13}{'wall ratio':>13}{'CPU ratio':>12}")
    for label, (wall, cpu) in medians.items():
        print(f"{label:28}{wall:9.1f}{cpu:9.1f}{count / wall:13.0f}{wall / ours[0]:13.1f}{cpu / ours[1]:12.1f}", flush=True)


def capture_cost(args: argparse.Namespace) -> None:
    """Time feature patching while generating, without and with capture of all listed features' codes (CPU seconds)."""
    edit = {"plugin": "sae", "sae": "demo", "site": "resid_post", "tokens": "last"}
    value: dict[str, Any] = {
        "name": "features",
        "model": {"plugin": "causal_lm", "path": "demo", "device": "cpu"},
        "data": {"plugin": "demo-prompts", "limit": 2},
        "conditions": {side: {"intervention": {**edit, "value": side}} for side in ("more", "less")},
        "sweep": {"feature": {"from": "demo", "limit": 8}},
        "trials": 30,
        "generate": {"max_new_tokens": 40, "do_sample": True, "temperature": 2.0, "top_p": 0.95},
    }
    captures: dict[str, list[Any]] = {"no capture": []}
    captures |= {f"40 features, {how} over tokens": [{"sae": "demo", "features": {"from": "demo"}, "reduce": how}] for how in ("last", "mean", "max")}
    captures["all 2,048 features, last token"] = [{"sae": "demo", "features": "all", "reduce": "last"}]
    seconds: dict[str, list[float]] = {label: [] for label in captures}
    for number in range(args.repeats + 1):
        for label, capture in captures.items():
            experiment = Experiment.from_dict({**value, "capture": capture})
            with tempfile.TemporaryDirectory(prefix="codi-engine-bench-") as folder:
                begun = time.process_time()
                experiment.run(Path(folder) / "run")
                if number:  # the first round warms up
                    seconds[label].append(time.process_time() - begun)
    plain = statistics.median(seconds["no capture"])
    print("\nfeature patching while generating: 2 prompts × 8 features × 2 conditions × 30 trials, sampled")
    for label, values in seconds.items():
        print(f"{label:36}{statistics.median(values):8.2f} CPU s{statistics.median(values) / plain:8.2f} × without capture", flush=True)


def peak(args: argparse.Namespace) -> None:
    """Print the peak resident memory of a fresh process that runs the resample study and nothing else."""
    command = [sys.executable, __file__, "--problems", str(args.problems), "--threads", str(args.threads), "--only"]
    print("\npeak memory of the resample run, whole process: " + subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--ablated", type=int, default=1000, help="problems of the ablation study")
    parser.add_argument("--sample", type=int, default=150, help="generations of the loop that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of every contender; more only where no one else needs the cores")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="codi-engine-bench-") as folder:
        args.path = Path(folder) / "problems.jsonl"
        write_problems(args.path)
        run(args)


def run(args: argparse.Namespace) -> None:
    """Run what was asked for."""
    if args.only:
        Study("resample", args.problems, args.path).run()
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
        return
    print(f"torch {torch.__version__}, {args.threads} thread(s), demo model, {args.problems} and {args.ablated} problems, medians of {args.repeats}")
    for name in STUDIES:
        compare(name, args)
    capture_cost(args)
    peak(args)


if __name__ == "__main__":
    main()
