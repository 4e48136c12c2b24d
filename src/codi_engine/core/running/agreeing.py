"""Workers of one run must have the same model and data; where their bits differ, the user is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError
from codi_engine.core.running.bench import Ready

if TYPE_CHECKING:
    from codi_engine.core.running.runner import Runner


class Agreement:
    """Compares every worker of a run with the process that commits, and with the first worker.

    Attributes
    ----------
    exact: all of them give the same bits so far

    ``elsewhere``: the workers are not this process' own, and may have other files
    """

    def __init__(self, runner: Runner, elsewhere: bool = False) -> None:
        self.runner, self.exact, self._elsewhere = runner, True, elsewhere
        self._first: tuple[str, Ready] | None = None

    def compare(self, who: str, found: Ready) -> None:
        """Take in a worker that is ready.

        Raises
        ------
        UserError: it has other files
        """
        runner = self.runner
        read = [(name, runner.inputs.get(name, digest), digest) for name, digest in found.inputs.items()]
        for what, mine, other in (("model", runner.facts["model_digest"], found.model), ("data", runner.plan.data.digest, found.data), *read):
            if mine != other:
                raise UserError(self._other(who, what, mine[:12], other[:12]))
        self._first = self._first or (who, found)
        if self.exact and not found.reproducible:
            self.exact = False
        elif self.exact and found.bits != self._first[1].bits:
            self.exact = False
            runner.life.warn(f"{who} gives other bits than {self._first[0]}: results agree to rounding, not bit for bit")
        runner.reproducible = self.exact

    def _other(self, who: str, what: str, mine: str, other: str) -> str:
        if self._elsewhere:
            return f"{who}: has other {what} files (sha256 {other}) than this process ({mine}); give it the same ones"
        return f"{who}: the {what} files changed while the run began (sha256 {mine}, then {other}); run it again"
