"""Peak memory of a contender, in a process of its own: how far resident memory (on a GPU: what its allocator holds) grows while it runs."""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from .workloads import Workload


def _resident() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def grown_by(work: Workload, name: str) -> str:
    """Run one contender once in this process and return the growth in MB; resident memory is looked at every 2 ms."""
    contender = dict(work.contenders())[name]()
    contender.run(10**9)  # one cell: libraries are loaded, kernels compiled
    if work.models.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.run(contender.every)
        return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.0f}"
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what loading the model left free would hide as much of what is used now
    base, peak, running = _resident(), [0.0], threading.Event()

    def watch() -> None:
        while not running.wait(0.002):
            peak[0] = max(peak[0], _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    contender.run(contender.every)
    running.set()
    thread.join()
    return f"{peak[0] - base:.0f}"


def peaks(work: Workload, args: argparse.Namespace, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Run every contender in a child and print what it grew by."""
    print(f"\n{work.letter}: growth of memory, MB")
    said = {}
    command = [sys.executable, "-m", "benchmarks.sweep", "--workload", work.letter, "--model", args.model, "--size", args.size, "--device", args.device]
    command += ["--every", str(args.every), "--threads", str(args.threads), *(["--mixed"] if args.mixed else [])]
    for name, _ in work.contenders():
        if wanted(name):
            out = subprocess.run([*command, "--only", name], check=True, capture_output=True, text=True, timeout=900).stdout
            said[name] = float(out.split()[-1])
            print(f"{name:<58}{said[name]:9.0f}", flush=True)
    return said
