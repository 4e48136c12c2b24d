"""Reviewing pairs in a terminal, one key per decision; every decision is saved at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from codi_engine.core.errors import UserError
from codi_engine.core.pairs.pair_checks import differences, wrong
from codi_engine.core.pairs.pair_review import open_for_review, refusal, set_answer
from codi_engine.core.pairs.pairfile import SIDES, Pair, PairFile, solution_text
from codi_engine.core.text import neutral

if TYPE_CHECKING:
    from codi_engine.core.pairs.pair_checks import Replaced

KEYS = "[a]pprove  [r]eject  [e]dit answer  [n]ote  [b]ack  [s]kip  [q]uit"
#: lines of a solution that are shown
_LINES = 16


class Session:
    """One sitting: the pairs that were undecided when it began (or all), and where it is among them."""

    def __init__(self, file: PairFile, everything: bool, console: Console) -> None:
        self.file, self.console = file, console
        self.waiting = [p for p in file.pairs if everything or p.status == "needs_review"]
        self.at = 0

    def run(self) -> None:
        """Ask until all are decided or the reviewer quits."""
        while self.at < len(self.waiting):
            self._show(self.waiting[self.at])
            if not self._ask(self.waiting[self.at]):
                break
        self._say_totals()

    def _ask(self, pair: Pair) -> bool:
        """Take keys until one leaves this pair; False to quit."""
        while True:
            self.console.print(Text(KEYS, style="dim"))
            try:
                key = click.getchar()
            except (OSError, _terminal_error()) as error:
                raise UserError("pairs review: needs a terminal; --export writes a table to decide in a spreadsheet") from error
            if key in ("", "q", "Q", "\x04", "\x1a"):
                return False
            if key == "\x03":
                raise KeyboardInterrupt
            if self._key(key.lower(), pair):
                return True

    def _key(self, key: str, pair: Pair) -> bool:
        """Do what a key says; True where the session moves on to ``at``."""
        if key == "a":
            return self._decide(pair, "approved")
        if key == "r":
            return self._decide(pair, "rejected")
        if key in ("s", "b"):
            self.at = self.at + 1 if key == "s" else max(self.at - 1, 0)
            return True
        if key == "e":
            self._answer(pair)
        elif key == "n":
            self._note(pair)
        else:
            self._say("no such key", "yellow")
        return False

    def _decide(self, pair: Pair, status: str) -> bool:
        why = refusal(pair) if status == "approved" else ""
        if why:
            self._say(f"cannot be approved: {why}", "red")
            return False
        pair.record["review_status"] = status
        self.file.save()
        self._say(status, "green" if status == "approved" else "red")
        self.at += 1
        return True

    def _answer(self, pair: Pair) -> None:
        wrong = set_answer(pair, click.prompt("corrupted answer", type=str, default="", show_default=False))
        if wrong:
            self._say(f"{wrong}; the answer stays as it was", "red")
            return
        self.file.save()
        self._say(f"corrupted {_number(pair.answer('corrupted'))}", "green")
        self._warn(pair)

    def _note(self, pair: Pair) -> None:
        pair.record["notes"] = click.prompt("note", type=str, default=str(pair.record.get("notes") or ""))
        self.file.save()
        self._say("noted", "green")

    # ------------------------------------------------------------------------------------------ showing

    def _show(self, pair: Pair) -> None:
        self.console.print()
        self.console.rule(Text(neutral(f"pair {pair.id}   {self.at + 1} of {len(self.waiting)}   {pair.status}")), align="left", style="dim")
        clean, corrupted = (pair.question(s) for s in SIDES)
        for side, text, changed in zip(SIDES, (clean, corrupted), (differences(clean, corrupted), differences(corrupted, clean)), strict=True):
            self.console.print(Text(f"{side}  {_number(pair.answer(side))}", style="bold"))
            self.console.print(_marked(text, changed, "bold reverse"))
        solution = solution_text(pair.side("clean"), pair.record)
        if solution:
            self.console.print(Text("solution of the clean side", style="bold"))
            self.console.print(Text("\n".join(neutral(solution).splitlines()[:_LINES]), style="dim"))
        for name in ("answer_source", "notes"):
            if pair.record.get(name):
                self.console.print(Text(neutral(f"{name}: {pair.record[name]}"), style="dim"))
        self._warn(pair)

    def _warn(self, pair: Pair) -> None:
        """Show what ``pairs validate`` would say of the pair."""
        for kind, message in wrong(pair):
            self._say(f"{kind}: {message}", "yellow")

    def _say(self, text: str, style: str) -> None:
        self.console.print(Text(neutral(text), style=style))

    def _say_totals(self) -> None:
        counts = {s: sum(p.status == s for p in self.file.pairs) for s in ("approved", "rejected")}
        left = len(self.file.pairs) - sum(counts.values())
        totals = f"{counts['approved']:,} approved, {counts['rejected']:,} rejected, {left:,} to be reviewed"
        self.console.print(Text(f"\n{totals}; saved in {neutral(self.file.path)}"))


def _terminal_error() -> type[Exception]:
    """Return the error of a terminal that is none, where the system has terminals of that kind."""
    try:
        import termios
    except ImportError:
        return OSError
    return termios.error


def _number(value: float | None) -> str:
    return "answer: not set" if value is None else f"answer: {value:g}" if abs(value) < 1e6 else f"answer: {value:,.6g}"


def _marked(text: str, changed: list[Replaced], style: str) -> Text:
    """Return text with the changed stretches marked; control characters are shown as their code."""
    out, at = Text(), 0
    for one in changed:
        out.append(neutral(text[at : one.start])).append(neutral(text[one.start : one.end]), style=style)
        at = one.end
    return out.append(neutral(text[at:]))


def review(path: str, everything: bool) -> None:
    """Review a file of pairs in the terminal."""
    file = open_for_review(path)
    console = Console(highlight=False)
    session = Session(file, everything, console)
    if not session.waiting:
        console.print(Text("nothing is left to be reviewed; --all shows the decided ones again"))
    session.run()
