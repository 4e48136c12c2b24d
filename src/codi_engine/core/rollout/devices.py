"""Where a model runs: one device, or several of this machine, whose units are computed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment

#: every CUDA device of this machine
ALL = "all"


def resolve_device(name: str, where: str = "model.device") -> str:
    """Return a usable device for ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{where}: '{name}' is no device; write auto, cpu, cuda or cuda:1") from None
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(device.type, False):
        raise UserError(f"{where}: '{name}' is not available here; write device: auto or cpu")
    if device.type == "cpu" and device.index:
        raise UserError(f"{where}: '{name}': there is one CPU; write cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(f"{where}: '{name}': only {torch.cuda.device_count()} CUDA devices here")
    return name


def devices_of(experiment: Experiment) -> list[str]:
    """Return the devices of ``model.device`` where it lists some, all of them usable; an empty list for one name.

    A list, names with commas between them (``cuda:0,cuda:1``), or ``all``: every CUDA device. A device may stand twice.

    Raises
    ------
    UserError: an entry is no device, or is not there
    """
    value, where = experiment.model.options.get("device"), f"{experiment.source}: model.device"
    if value == ALL:
        return _all(where)
    if isinstance(value, str) and "," in value:
        value = [name.strip() for name in value.split(",")]
    if not isinstance(value, list):
        return []
    if not value or not all(isinstance(name, str) and name for name in value):
        raise UserError(f"{where}: write a list of devices, for example [cuda:0, cuda:1]")
    return [resolve_device(name, f"{where}[{number}]") for number, name in enumerate(value)]


def _all(where: str) -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(f"{where}: all: there is no CUDA device here; write auto or cpu")
    return [f"cuda:{number}" for number in range(count)]


def on_first(experiment: Experiment) -> tuple[Experiment, list[str]]:
    """Return the experiment on the first of its devices, and all of them (empty: the experiment names no list)."""
    devices = devices_of(experiment)
    return (experiment.with_overrides([f"model.device={devices[0]}"]) if devices else experiment), devices


def held(devices: Sequence[str]) -> int:
    """Return how many GPUs a run on these devices holds; 1 where it holds none, for the machine."""
    return len({d for d in devices if d.startswith("cuda")}) or 1
