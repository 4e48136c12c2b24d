"""Comparing everything that belongs to a run with what was written: the store's files, results, and the files it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from codi_engine.core.progress import Progress
from codi_engine.core.runs.analyzing import expand
from codi_engine.core.runs.places import no_run
from codi_engine.core.runs.stored import damaged_results
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import EXPERIMENT, LEDGER, LEDGER_COPY
from codi_engine.store.mirror import place, pull
from codi_engine.store.remote import remote_at
from codi_engine.store.verifying import Finding, Verifier


def verify_run(path: str | Path, progress: Progress | None = None) -> list[Finding]:
    """Compare a run with its ledger, its results with their checksums, and what it was computed from with what is here now.

    In order of the files' names.

    Raises
    ------
    UserError: not a run
    """
    root, progress = place(path), progress or Progress()
    if not (root / LEDGER).exists() and not (root / LEDGER_COPY).exists():
        raise no_run(root)
    seen = _Bytes(progress)
    try:
        if (remote := remote_at(root)) is not None:
            pull(remote, fresh=True)
        verifier = Verifier(root, seen)
    except StoreError as error:
        return [Finding(LEDGER, "damaged", str(error).removeprefix(f"{root}: "))]
    progress.start("verify", verifier.total // _MB, "MB")
    found = [*verifier.findings(), *damaged_results(root)]
    if not any(f.file in (LEDGER, EXPERIMENT) and f.damage for f in found):
        progress.start("verify what it was computed from", 0, "")
        found += _inputs(root)
    progress.finish()
    return sorted(found, key=lambda f: f.file)


_MB = 1_000_000


def _inputs(root: Path) -> Iterator[Finding]:
    """Yield the model's files, data, autoencoders and further files that are no longer what the run was computed with."""
    from codi_engine.core.running.inputs import changed_inputs

    for what, problem in changed_inputs(root):
        yield Finding(what, "absent" if problem.startswith("is not here") else "changed", problem)


def runs_to_verify(patterns: Sequence[str]) -> list[Path]:
    """Return the run directories that patterns name; one whose ledger is gone is a run too while there is its copy."""
    found: list[Path] = []
    for pattern in patterns:
        given = Path(pattern)
        lost = not (given / LEDGER).exists() and (given / LEDGER_COPY).exists()
        found += [p for p in ([given] if lost else expand([pattern])) if p not in found]
    return found


class _Bytes:
    """Tells of whole megabytes."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.left = progress, 0

    def __call__(self, size: int) -> None:
        self.left += size
        whole, self.left = divmod(self.left, _MB)
        self.progress.advance(whole)
