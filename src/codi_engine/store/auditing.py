"""What ``verify`` looks at of a run at an object store beside its small files: every shard and text, the lines of the ledger, and what is foreign."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from codi_engine.store.layout import COPIES, DATA, LEDGER, LEDGER_COPY, TEXTS
from codi_engine.store.lines import LINES, line_key
from codi_engine.store.remote import Remote

Kind = Literal["damaged", "missing", "truncated", "foreign", "interrupted"]
Difference = tuple[str, Kind, str]
#: lines that are fetched at a time
_THREADS = 16


def unvouched(remote: Remote, known: Container[str], left: Callable[[str], bool]) -> Iterator[Difference]:
    """Yield the objects of the store's folders that no plan and no unit wrote.

    Parameters
    ----------
    known: names of what belongs to the run
    left: whether an interrupted writer leaves an object of this name
    """
    for folder in (DATA, TEXTS, COPIES):
        for found in remote.listed(folder):
            if found.key in known:
                continue
            if left(found.key):
                yield found.key, "interrupted", "was left by a writer that was interrupted"
            else:
                yield found.key, "foreign", "is foreign: no plan and no unit wrote it"


def ledger_objects(remote: Remote, raw: bytes) -> Iterator[Difference]:
    """Compare the ledger's objects with what they give together.

    Parameters
    ----------
    raw: the ledger's bytes
    """
    yield from _whole(remote, raw)
    there = {found.key for found in remote.listed(LINES)}
    if not there:
        return  # a local run that was copied: the ledger in one object is all there is
    lines = raw.splitlines(keepends=True)
    first = min((n for n in range(len(lines)) if line_key(n) in there), default=0)  # a copied run that was written further
    wanted = {line_key(n): line for n, line in enumerate(lines) if n >= first}
    for key in sorted(there - wanted.keys()):
        yield key, "foreign", "is foreign: it is no line of the ledger"
    for key in sorted(wanted.keys() - there):
        yield key, "missing", "is missing; repair writes it again"
    both = sorted(wanted.keys() & there)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        for key, same in zip(both, pool.map(lambda k: remote.get(k)[0] == wanted[k], both), strict=True):
            if not same:
                yield key, "damaged", "is not the line that the ledger has; repair writes it again"


def _whole(remote: Remote, raw: bytes) -> Iterator[Difference]:
    for key in (LEDGER, LEDGER_COPY):
        try:
            data = remote.get(key)[0]
        except FileNotFoundError:
            yield key, "interrupted", f"is not written yet; {LINES} has all lines"
            continue
        if data != raw and raw.startswith(data):
            yield key, "interrupted", f"lacks the last lines, which {LINES} has"
        elif data != raw:
            yield key, "damaged", f"is not what the lines in {LINES} give; repair writes it again"


def mend_ledger(remote: Remote, raw: bytes) -> list[str]:
    """Write the ledger's objects again that are not as they should be, and return their names."""
    lines = {line_key(n): line for n, line in enumerate(raw.splitlines(keepends=True))}
    mended = []
    for key, kind, _ in list(ledger_objects(remote, raw)):
        if kind in ("damaged", "missing"):
            remote.put(key, lines.get(key, raw))
            mended.append(key)
    return mended
