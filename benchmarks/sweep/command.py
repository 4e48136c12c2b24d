"""Options of ``python -m benchmarks.sweep``, and what they run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import __doc__ as about
from . import floors, levers, peers
from .memory import grown_by, peaks
from .models import SHAPES, Models, matrix_rates
from .workloads import TINY, WORKLOADS, Workload


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for.

    Raises
    ------
    SystemExit: contenders disagree, or no GPU is there
    """
    args = _options().parse_args(argv)
    if args.size not in SHAPES[args.model]:
        raise SystemExit(f"--size {args.size}: {args.model} is made at {', '.join(SHAPES[args.model])}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here")
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.only is not None:
            print(grown_by(_workload(args, args.workload[0], _dtype(args)), args.only))
            return
        said = _all(args)
    if args.json is not None:
        args.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=f"{about}\n{floors.__doc__}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=WORKLOADS, nargs="+", default=list(WORKLOADS))
    parser.add_argument("--model", choices=SHAPES, default="gpt2")
    parser.add_argument("--size", choices=sorted({size for sizes in SHAPES.values() for size in sizes}), default="gpt2")
    parser.add_argument("--mixed", action="store_true", help="prompts of 20 to 100 tokens (A and B)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", type=int, default=12, help="slow contenders run every n-th setting; one at a time, a fraction of that")
    parser.add_argument("--contender", nargs="+", metavar="WORD", help="only contenders whose name holds one of these words")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: bf16, CUDA events, cells a second and the share of the card's matrix rate"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory in place of time, one process per contender")
    parser.add_argument("--levers", action="store_true", help="what the engine's own means give, one switched off at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that is printed in tables")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser


def _workload(args: argparse.Namespace, letter: str, dtype: torch.dtype) -> Workload:
    sizes: dict[str, Any] = TINY[letter] if args.size == "tiny" else {}
    return WORKLOADS[letter](Models(args.model, args.size, args.device, dtype), args.every, mixed=args.mixed, **sizes)


def _dtype(args: argparse.Namespace) -> torch.dtype:
    return torch.bfloat16 if args.device == "cuda" else torch.float32


def _wanted(args: argparse.Namespace) -> Callable[[str], bool]:
    return lambda name: args.contender is None or any(word.lower() in name.lower() for word in args.contender)


def _all(args: argparse.Namespace) -> dict[str, Any]:
    prompts = "prompts of 20 to 100 tokens" if args.mixed else "prompts of one length"
    rates = matrix_rates(Models(args.model, args.size, args.device, _dtype(args)))
    rate = ", ".join(f"{value / 1e9:,.0f} GFLOP/s {way}" for way, value in rates.items())
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s)"
    print(f"torch {torch.__version__}, {machine}, {args.model} at {args.size} size, {prompts}; matrix products: {rate}")
    for name in peers.absent() if "A" in args.workload else ():
        print(f"{name} is not installed and takes no part: pip install 'codi-engine[peers]'")
    said: dict[str, Any] = {"torch": torch.__version__, "model": args.model, "size": args.size, "mixed": args.mixed, "machine": machine}
    for letter in args.workload:
        said[letter] = _one(args, letter)
    return said


def _one(args: argparse.Namespace, letter: str) -> Any:
    """Measure one workload; what is timed in bf16 is compared in fp32 first, by the same code on the same device."""
    wanted, work = _wanted(args), _workload(args, letter, _dtype(args))
    if args.memory:
        return peaks(work, args, wanted)
    if args.levers:
        return levers.compare(work, args.repeats, wanted)
    if args.device == "cuda":
        exact = _workload(args, letter, torch.float32)
        exact.check({c.name: c.run(c.every) for c in exact.chosen(wanted)})
        del exact
        torch.cuda.empty_cache()
    return work.compare(args.repeats, wanted, checked=args.device == "cuda")
