"""What this machine does in a second and how much memory this process took, measured for a moment."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codi_engine.core.model import ModelInfo

#: work of one timing: FLOPs, and parameters of the block that stands for the model's (a wider one is scaled)
_FLOPS = 1e9
_PARAMETERS = 5e7
#: keys that each row of the timed block attends to
_KEYS = 96
#: seconds from which the share of the processor that this process gets is believed, and the most it may explain
_LONG, _MOST = 0.5, 4.0
#: seconds that the loop of :func:`python_speed` takes on the machine on which the engine's overheads were measured
_LOOP = 0.67e-3


@dataclass(frozen=True)
class BlockTime:
    """Seconds of one transformer block: ``call`` for any call, ``row`` for each of its token rows."""

    call: float
    row: float


class Preparing:
    """The time since an invocation began, and how much other processes slowed it: wall time by processor time.

    Short timings fall between the system's time slices and see nothing of that.
    """

    def __init__(self) -> None:
        self.wall, self._processor = time.perf_counter(), time.process_time()

    def taken(self) -> tuple[float, float]:
        """Return (seconds so far, slowed by this factor); 1 where it is too early to tell."""
        wall, processor = time.perf_counter() - self.wall, time.process_time() - self._processor
        return wall, min(max(wall / max(processor, 1e-9), 1.0), _MOST) if wall >= _LONG else 1.0


def block_parameters(info: ModelInfo) -> float:
    """Weights of one block (an MLP of two matrices; a gated one has three)."""
    return float(info.width * (2 * info.heads * info.head_dim + 2 * info.kv_heads * info.head_dim + 2 * info.mlp_width))


def block_time(info: ModelInfo) -> BlockTime:
    """Time a block of the model's shape, on its device and in its type; no weight of the model is read."""
    return _block_time(info.width, info.mlp_width, max(info.heads, 1), info.dtype, info.device)


@cache
def _block_time(width: int, mlp: int, heads: int, dtype: str, device: str) -> BlockTime:
    import torch

    parameters = width * (4 * width + 2 * mlp)
    scale = max(1.0, parameters / _PARAMETERS) ** 0.5
    width, mlp = max(int(width / scale) // heads, 1) * heads, max(int(mlp / scale), 1)
    few, many = 16, 1024 if device.startswith("cuda") else int(min(max(_FLOPS / (2 * min(parameters, _PARAMETERS)), 48), 512))
    wait: Callable[[], Any] = partial(torch.cuda.synchronize, device) if device.startswith("cuda") else torch.mps.synchronize if device == "mps" else int
    with torch.inference_mode():
        block = _block(width, mlp, heads, getattr(torch, dtype, torch.float32), device)
        low, high = (_typical(partial(block, n), wait) for n in (few, many))
    row = max(high - low, 0.0) / (many - few)
    return BlockTime(max(low - few * row, 1e-6), max(row, 1e-9) * scale * scale)


def _block(width: int, mlp: int, heads: int, dtype: Any, device: str) -> Callable[[int], Any]:
    """Return a function that runs a block on so many rows."""
    import torch
    from torch.nn import functional

    def made(*shape: int) -> torch.Tensor:
        return torch.full(shape, 0.01, dtype=dtype, device=device)

    qkv, out, up, down = made(3 * width, width), made(width, width), made(mlp, width), made(width, mlp)
    keys = made(heads, _KEYS, width // heads)

    def run(rows: int) -> torch.Tensor:
        x = made(rows, width)
        q = functional.linear(functional.layer_norm(x, (width,)), qkv)[:, :width].reshape(rows, heads, -1).transpose(0, 1)
        mixed = (q @ keys.transpose(1, 2)).softmax(-1) @ keys
        x = x + functional.linear(mixed.transpose(0, 1).reshape(rows, width), out)
        return x + functional.linear(functional.gelu(functional.linear(functional.layer_norm(x, (width,)), up), approximate="tanh"), down)

    return run


def _typical(run: Callable[[], Any], wait: Callable[[], Any] = lambda: None, times: int = 5) -> float:
    """Return the median of a few timings, after one that is not counted."""
    taken = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


@cache
def python_speed() -> float:
    """How many times longer Python takes here than where the engine's overheads were measured."""

    def loop() -> None:
        table: dict[int, list[int]] = {}
        for i in range(10_000):
            table.setdefault(i % 97, []).append(i)
        sorted(len(v) for v in table.values())

    return _typical(loop) / _LOOP


# ------------------------------------------------------------------------------------------------- memory


def resident_bytes() -> int | None:
    """Memory of this process now; None where the system does not say."""
    return _status("VmRSS")


def peak_bytes(device: str = "cpu") -> int | None:
    """Most memory since :func:`reset_peak` (since the start, where the system cannot reset): of a CUDA device, else of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    peak = _status("VmHWM")
    if peak is not None or sys.platform == "win32":
        return peak
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else int(most) * 1024


def reset_peak(device: str = "cpu") -> None:
    """Begin to look for the peak again."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # not allowed everywhere; the peak is then the process's
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
