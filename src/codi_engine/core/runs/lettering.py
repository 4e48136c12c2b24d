"""The words in figures: shown as they were typed, whatever they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codi_engine.core.text import neutral

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: characters of one line of a text in a figure, and of one tick
LONGEST, TICK = 300, 80


def as_typed(figure: Figure) -> None:
    """Make every text of a figure one that can be drawn: no control characters, no broken mathematics, no endless lines.

    Ticks of logarithmic axes keep their powers. What is asked for as mathematics (``parse_math=True``) and can be read as such stays it.
    """
    from matplotlib.text import Text

    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            _ticks(axis)
    for text in figure.findobj(Text):
        text.set_text(_plain(text.get_text()))
        if text.get_parse_math() and not _mathematics(text.get_text()):
            text.set_parse_math(False)


def _plain(words: str, most: int = LONGEST) -> str:
    lines = (neutral(line[: most + 1]) for line in words.split("\n"))
    return "\n".join(line if len(line) <= most else f"{line[: most - 1]}…" for line in lines)


def _ticks(axis: Any) -> None:
    """Mend the words of ticks, which are set anew whenever a figure is drawn; new ticks take after the first one."""
    from matplotlib.category import StrCategoryFormatter
    from matplotlib.ticker import FixedFormatter, FuncFormatter, LogFormatter

    levels = (
        (axis.get_major_formatter, axis.set_major_formatter, axis.get_major_ticks),
        (axis.get_minor_formatter, axis.set_minor_formatter, axis.get_minor_ticks),
    )
    for formatter, replace, ticks in levels:
        said = formatter()
        if isinstance(said, (FixedFormatter, FuncFormatter, StrCategoryFormatter)) and not isinstance(getattr(said, "func", None), _Typed):
            replace(FuncFormatter(_Typed(said)))
        for tick in ticks() if isinstance(said, LogFormatter) else ():
            tick.label1.set_parse_math(True)
            tick.label2.set_parse_math(True)


@dataclass
class _Typed:
    """What a formatter says of a tick, made plain."""

    said: Any

    def __call__(self, value: float, position: int | None = None) -> str:
        return _plain(str(self.said(value, position)), TICK)


def _mathematics(words: str) -> bool:
    """Say whether matplotlib can draw the text where it holds mathematics."""
    from matplotlib.mathtext import MathTextParser

    if "$" not in words:
        return True
    try:
        MathTextParser("path").parse(words)
    except ValueError:  # what its grammar does not know
        return False
    return True
