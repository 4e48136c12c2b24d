"""Which part of a run a process computes: ``--shard 0/2``, or what Slurm and torchrun say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codi_engine.core.errors import UserError
from codi_engine.core.running.generations import Unit
from codi_engine.store.outbox import owners

#: most shards of a run
MOST = 100_000
#: where launchers say which of their processes this is: (number, count, first number), by what they are called
LAUNCHERS = (
    ("Slurm array", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("torchrun", "RANK", "WORLD_SIZE", ""),
    ("srun", "SLURM_PROCID", "SLURM_NTASKS", ""),
)


@dataclass(frozen=True)
class Share:
    """A process' part of a run: ``part`` of ``of``, counted from 0; ``taken`` says where that was read."""

    part: int
    of: int
    taken: str = ""

    def __str__(self) -> str:
        return f"{self.part}/{self.of}"

    @property
    def name(self) -> str:
        """The name of its lock."""
        return f"shard-{self.part}-of-{self.of}"

    def of_units(self, units: Sequence[Unit]) -> list[Unit]:
        """Return this part of a stage's units."""
        return list(units[self.part :: self.of])


def parse_share(text: str, environment: Mapping[str, str] | None = None) -> Share:
    """Read ``0/2``, or with ``auto`` what Slurm or torchrun say in the environment.

    Raises
    ------
    UserError: it is neither, or the environment says nothing
    """
    if text == "auto":
        return _from_environment(os.environ if environment is None else environment)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    part, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 <= part < of <= MOST:
        raise UserError(f"--shard: must be i/n with i from 0 to n-1, such as 0/2 and 1/2, or auto; got '{text[:40]}'")
    return Share(part, of)


def _from_environment(environment: Mapping[str, str]) -> Share:
    for name, number, count, first in LAUNCHERS:
        if number not in environment or count not in environment:
            continue
        values = [environment[number], environment[count], environment.get(first, "0") if first else "0"]
        if not all(re.fullmatch(r"\d{1,9}", value, re.ASCII) for value in values):
            raise UserError(f"--shard auto: {number} and {count} must be whole numbers; they are '{values[0][:20]}' and '{values[1][:20]}'")
        part, of = int(values[0]) - int(values[2]), int(values[1])
        if not 0 <= part < of <= MOST:
            remedy = f"give the array as 0-{of - 1}, without steps" if number.endswith("ARRAY_TASK_ID") else "give --shard i/n"
            raise UserError(f"--shard auto: {number}={values[0]} does not lie among {of} from {values[2]}: {remedy}")
        return Share(part, of, f"{name}: {number}={values[0]}, {count}={values[1]}")
    names = "; ".join(f"{number} and {count}" for _, number, count, _ in LAUNCHERS)
    raise UserError(f"--shard auto: no launcher says which part this is (looked for {names}).\nGive --shard i/n.")


def beside(alive: Mapping[str, str]) -> str:
    """Say to a process without a share who computes the run beside it (:func:`shards_alive`), and what to do instead."""
    of = int(next(iter(alive)).rpartition("/")[2])
    free = next((f"{part}/{of}" for part in range(of) if f"{part}/{of}" not in alive), None)
    who = ", ".join(f"shard {name} ({owner})" for name, owner in list(alive.items())[:4]) + (", …" if len(alive) > 4 else "")
    remedy = "Ctrl-C leaves it to them, they finish it" if free is None else f"Ctrl-C, and --shard {free}, leaves them their share"
    return f"{who}; what they finish from now on is computed twice: {remedy}"


def shards_alive(path: Path) -> dict[str, str]:
    """Return shard → owner of the processes that compute units of a run now: ``0/2`` → ``host pid 12``."""
    found = {re.fullmatch(r"shard-(\d+)-of-(\d+)", name): owner for name, owner in owners(path).items()}
    return {f"{match[1]}/{match[2]}": owner for match, owner in found.items() if match}
