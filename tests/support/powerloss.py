"""A disk that loses its power: what a trace of calls has made durable stays, of the rest a part, chosen to hurt.

What POSIX promises and no more: fsync of a file makes its content durable, fsync of a directory its entries. Until then an entry
may be old or new, and content that was not synchronised may be missing, cut off, or zeros.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tests.support.syscalls import Call


@dataclass
class Node:
    """A file or directory: what it holds now, and what of it is durable."""

    folder: bool = False
    now: bytes = b""
    durable: bytes = b""


@dataclass
class Disk:
    """Takes calls in; paths are relative to a directory that is durable from the beginning."""

    names: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str, str, Node | None]] = field(default_factory=list)  # (old name or nothing, new name, node or nothing: removed)

    def take(self, call: Call) -> None:
        """Let a call happen."""
        node = self.names.get(call.path)
        if call.kind in ("mkdir", "open") and node is None:
            self._entry("", call.path, Node(folder=call.kind == "mkdir"))
        elif call.kind == "open" and call.at and node is not None:
            node.now = b""
        elif call.kind == "write" and node is not None:
            node.now = node.now[: call.at].ljust(call.at, b"\0") + call.data + node.now[call.at + len(call.data) :]
        elif call.kind == "truncate" and node is not None:
            node.now = node.now[: call.at].ljust(call.at, b"\0")
        elif call.kind == "rename" and node is not None:
            self._entry(call.path, call.to, node)
        elif call.kind in ("unlink", "rmdir"):
            self._entry("", call.path, None)
        elif call.kind == "fsync":
            self._sync(call.path, node)

    def _entry(self, old: str, new: str, node: Node | None) -> None:
        self.pending.append((old, new, node))
        _apply(self.names, old, new, node)

    def _sync(self, path: str, node: Node | None) -> None:
        if node is not None and not node.folder:
            node.durable = node.now
            return
        for old, new, changed in [p for p in self.pending if _parent(p[1]) == path]:
            _apply(self.durable, old, new, changed)
        self.pending = [p for p in self.pending if _parent(p[1]) != path]

    def lasting(self, path: str) -> bytes | None:
        """Return the content of a file that any loss of power leaves; None where its name or a directory above it may be lost."""
        above = [str(p) for p in PurePosixPath(path).parents][:-1]
        node = self.durable.get(path)
        sure = node is not None and self.names.get(path) is node and all(a in self.durable for a in above)
        return node.durable if sure and node is not None else None

    def after_loss(self, rng: random.Random) -> dict[str, bytes | None]:
        """Return what is found when the power is back: path → content, None for directories."""
        share = rng.choice((0.0, 0.5, 0.5, 1.0))  # of what was not durable, so much came to the disk
        names = dict(self.durable)
        for old, new, node in self.pending:
            if rng.random() < share:
                _apply(names, old, new, node)
        kept = {p: n for p, n in names.items() if all(str(a) in names for a in list(PurePosixPath(p).parents)[:-1])}
        return {path: None if node.folder else _torn(node, rng) for path, node in sorted(kept.items())}


def _apply(names: dict[str, Node], old: str, new: str, node: Node | None) -> None:
    names.pop(old, None)
    if node is None:
        names.pop(new, None)
    else:
        names[new] = node


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _torn(node: Node, rng: random.Random) -> bytes:
    """Return a file's content of which only a part was durable."""
    if node.now == node.durable:
        return node.durable
    common = next((i for i, (a, b) in enumerate(zip(node.now, node.durable, strict=False)) if a != b), min(len(node.now), len(node.durable)))
    cut = rng.randint(common, max(len(node.now), common))
    zeros = node.now[:cut] + bytes(len(node.now) - cut)
    return rng.choice((node.durable, node.now, node.now[:cut], zeros, node.now[:common] + bytes(len(node.now) - common)))


def restore(found: Mapping[str, bytes | None], folder: Path) -> None:
    """Lay out what a loss of power left."""
    folder.mkdir(parents=True)
    for name, data in found.items():
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


def disordered(trace: Iterable[Call], run: str) -> tuple[list[str], int]:
    """Return what a ledger line named before it was durable, or that was not durable itself when the next was written; and the units seen."""
    disk, problems, units, documents, written = Disk(), list[str](), 0, dict[str, Any](), b""
    ledger = f"{run}/ledger"
    for call in trace:
        if call.kind == "write" and call.path == ledger:
            if written and disk.lasting(ledger) != written:
                problems.append(f"line {written.count(10)} was not durable before the next")
            record = json.loads(call.data)
            named = {**documents, **record["files"]} if record["kind"] == "unit" else {}
            documents = record["files"] if record["kind"] == "plan" else documents
            units += record["kind"] == "unit"
            for name, stated in named.items():
                data = disk.lasting(f"{run}/{name}")
                if data is None or hashlib.sha256(data).hexdigest() != stated["sha256"]:
                    problems.append(f"{name} was not durable before the ledger named it")
        disk.take(call)
        if call.path == ledger and call.kind == "write":
            written = disk.names[ledger].now
    if disk.lasting(ledger) != written:
        problems.append("the last line was not durable in the end")
    return problems, units
