"""Fitting a finished figure into another size: margins keep their room, panels stretch, text shrinks little and never overflows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

#: points below which text cannot be read on paper; numbers in cells that would have to be smaller are left out
_LEAST = 4.5
#: least share of a figure that its panels take
_PANELS = 0.45
#: of the width that text may fill: letters are a little wider at some resolutions than at others
_SAFE = 0.965
#: inches within which figures can be drawn
_BOUNDS = (1.0, 60.0)


def parse_size(text: str) -> tuple[float, float]:
    """Return width and height in inches of ``7x4``, ``3.5in x 2.5in`` or ``9cmx6cm`` (one unit stands for both).

    Raises
    ------
    UserError: anything else
    """
    import re

    number = r"(\d+(?:\.\d+)?)\s*(in|cm|mm)?"
    found = re.fullmatch(rf"\s*{number}\s*[x×]\s*{number}\s*", text, re.IGNORECASE)
    if not found:
        raise UserError(f"--size '{text}': write WIDTHxHEIGHT in inches, or with a unit: 7x4, 9cmx6cm")
    inches = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4}
    unit = (found[4] or found[2] or "in").lower()
    width, height = float(found[1]) * inches[(found[2] or unit).lower()], float(found[3]) * inches[unit]
    if not all(_BOUNDS[0] <= v <= _BOUNDS[1] for v in (width, height)):
        raise UserError(f"--size '{text}': between {_BOUNDS[0]:g} and {_BOUNDS[1]:g} inches")
    return width, height


def resize(figure: Figure, width: float, height: float) -> None:
    """Fit a figure into ``width`` × ``height`` inches.

    What stands outside the panels (titles, labels, colour bars' numbers) keeps its distance to the edges, scaled like the
    text; panels take the rest. Then text that would leave the figure or its cell is made smaller, or left out.
    """
    old = tuple(float(v) for v in figure.get_size_inches())
    share = min(width / old[0], height / old[1])
    scale = min(max(share**0.6, 0.62), 1.25)
    across, up = _stretch(figure, 0, old[0], width, scale), _stretch(figure, 1, old[1], height, scale)
    engine = figure.get_layout_engine()
    boxes = [(ax, ax.get_position()) for ax in figure.axes]
    figure.set_size_inches(width, height)
    _scale_text(figure, scale)
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((across(x), up(y)))
    if engine is None:
        for ax, box in boxes:
            ax.set_position((across(box.x0), up(box.y0), across(box.x1) - across(box.x0), up(box.y1) - up(box.y0)))
    elif (rect := engine.get().get("rect")) is not None:
        x, y, w, h = rect
        engine.set(rect=(x, y, w, up(y + h) - y))  # type: ignore[call-arg]
    _fit(figure)


def _stretch(figure: Figure, axis: int, old: float, new: float, scale: float) -> Callable[[float], float]:
    """Return old share → new share along one axis: margins and gaps scale like text, what panels cover takes the rest."""
    import numpy as np

    spans = sorted((b.x0, b.x1) if axis == 0 else (b.y0, b.y1) for b in (ax.get_position() for ax in figure.axes))
    edges = [0.0, *sorted({min(max(e, 0.0), 1.0) for s in spans for e in s}), 1.0]
    lengths = np.diff(edges)
    covered = np.array([any(s[0] < (a + b) / 2 < s[1] for s in spans) for a, b in itertools.pairwise(edges)])
    gaps = float(lengths[~covered].sum()) * old * scale / new
    if not covered.any() or float(lengths[covered].sum()) <= 0:
        return lambda value: value
    share = min(gaps, max(1 - _PANELS, 0.0))  # panels keep some room whatever stands around them
    room = np.where(covered, lengths * (1 - share) / lengths[covered].sum(), lengths * share / max(float(lengths[~covered].sum()), 1e-9))
    return lambda value: float(np.interp(value, edges, np.concatenate([[0.0], np.cumsum(room)])))


def _scale_text(figure: Figure, scale: float) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_fontsize(float(text.get_fontsize()) * scale)
    for ax in figure.axes:
        ax.tick_params(labelsize=_tick_size(ax))
        for line in ax.findobj(Line2D):
            line.set_markersize(line.get_markersize() * scale)
        for dots in ax.findobj(PathCollection):
            dots.set_sizes(dots.get_sizes() * scale**2)


def _tick_size(ax: Any) -> float:
    """Return the size that tick labels have by now, for those that are made anew when the figure is drawn."""
    labels = [*ax.get_xticklabels(), *ax.get_yticklabels()]
    return float(min((label.get_fontsize() for label in labels), default=8.0))


# ----------------------------------------------------------------------------------------------------- fit


def _fit(figure: Any) -> None:
    """Make text smaller that leaves the figure, numbers smaller that leave their cells, and thin out ticks that touch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, axes = figure.bbox.width, list[Any](figure.axes)
    for text in figure.texts:
        _within(text, renderer, width)
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        if box.x1 > _SAFE * width:
            for text in legend.get_texts():
                text.set_fontsize(max(float(text.get_fontsize()) * 0.92 * (_SAFE * width - box.x0) / box.width, _LEAST))
    for ax in axes:
        if not ax.get_visible():
            continue
        beside = [t for t in ax.texts if t.get_transform() == ax.transAxes]
        for text in (*_titles(ax), *beside):
            _within(text, renderer, width)
        _cells(ax, renderer)
        _names(ax, renderer)
        _labels(ax.xaxis.label, renderer, ax.bbox.width, 0)
        _labels(ax.yaxis.label, renderer, ax.bbox.height, 1)
        _thin(ax, renderer)
    _lift(figure, renderer)


def _lift(figure: Figure, renderer: Any) -> None:
    """Raise the panels by what axes' labels leave the figure below."""
    labels = [ax.xaxis.label for ax in figure.axes if ax.get_visible() and ax.xaxis.label.get_text()]
    lowest = min((label.get_window_extent(renderer).y0 for label in labels), default=0.0)
    if lowest >= 0 or figure.get_layout_engine() is not None:
        return
    up = -lowest / figure.bbox.height
    for ax in figure.axes:
        box = ax.get_position()
        ax.set_position((box.x0, up + box.y0 * (1 - up), box.width, box.height * (1 - up)))


def _titles(ax: Any) -> list[Text]:
    """Return the titles of axes: in the middle, on the left, on the right."""
    return [ax.title, ax._left_title, ax._right_title]


def _within(text: Text, renderer: Any, width: float) -> None:
    """Shrink a line until it ends inside the figure; wrap it where it would become too small."""
    if not text.get_text() or not text.get_visible():
        return
    box = text.get_window_extent(renderer)
    room = _SAFE * width - max(box.x0, 0.0)
    if box.x1 <= _SAFE * width or room <= 0:
        return
    size = text.get_fontsize() * room / box.width
    if size < _LEAST + 1:
        size = max(size, _LEAST)
        text.set_text(_shortened(text.get_text(), room / (box.width * size / text.get_fontsize())))
    text.set_fontsize(size)


def _shortened(text: str, share: float) -> str:
    return text if share >= 1 else f"{text[: max(int(len(text) * share) - 1, 1)]}…"


def _cells(ax: Any, renderer: Any) -> None:
    """Fit the numbers that are written into cells (their gid is ``value``)."""
    values = [t for t in ax.texts if t.get_gid() == "value"]
    if not values:
        return
    cell_x, cell_y = abs(ax.transData.transform((1.0, 1.0)) - ax.transData.transform((0.0, 0.0)))
    boxes = [t.get_window_extent(renderer) for t in values]
    share = min(min(0.86 * cell_x / max(b.width, 1e-9), 0.9 * cell_y / max(b.height, 1e-9)) for b in boxes)
    for text in values:
        text.set_fontsize(text.get_fontsize() * min(share, 1.0))
        text.set_visible(text.get_fontsize() >= _LEAST)


def _names(ax: Any, renderer: Any) -> None:
    """Leave out names of points that would cover another point or a name before them."""
    from matplotlib.collections import PathCollection
    from matplotlib.text import Annotation

    points = [point for dots in ax.findobj(PathCollection) for point in ax.transData.transform(dots.get_offsets())]
    kept: list[Any] = []
    for name in (t for t in ax.texts if isinstance(t, Annotation)):
        box, own = name.get_window_extent(renderer), ax.transData.transform(name.xy)
        covered = any(box.contains(*point) and abs(point - own).max() > 1 for point in points)
        if covered or any(box.overlaps(other) for other in kept):
            name.set_visible(False)
        else:
            kept.append(box)


def _labels(label: Any, renderer: Any, room: float, axis: int) -> None:
    """Fit an axis' label to its axis, with some room to spare at either end."""
    if not label.get_text():
        return
    box = label.get_window_extent(renderer)
    length = box.width if axis == 0 else box.height
    if length <= 1.25 * room:
        return
    size = label.get_fontsize() * 1.25 * room / length
    label.set_fontsize(max(size, _LEAST))
    if size < _LEAST:
        label.set_text(_folded(label.get_text(), _LEAST / size))


def _folded(text: str, lines: float) -> str:
    """Break a text into so many lines of about the same length."""
    import math
    import textwrap

    return textwrap.fill(text, max(math.ceil(1.1 * len(text) / math.ceil(lines)), 8), break_long_words=False)


def _thin(ax: Any, renderer: Any) -> None:
    """Shrink tick labels that touch each other across; where they would be too small, leave every second one out.

    Ticks that an axis chooses by itself are made anew whenever it is drawn: of these it gets fewer.
    """
    from matplotlib.ticker import MaxNLocator

    shown = [t for t in ax.get_xticklabels() if t.get_text() and t.get_visible()]
    boxes = [t.get_window_extent(renderer) for t in shown]
    if len(boxes) < 2 or shown[0].get_rotation():
        return
    pitch = min(abs((b.x0 + b.x1) - (a.x0 + a.x1)) / 2 for a, b in itertools.pairwise(boxes))
    widest = max(max(b.width for b in boxes), 1e-9)
    if isinstance(ax.xaxis.get_major_locator(), MaxNLocator):
        if pitch < 1.4 * widest:
            ax.xaxis.set_major_locator(MaxNLocator(nbins=max(int(ax.bbox.width / (1.5 * widest)), 2), steps=[1, 2, 2.5, 5, 10]))
        return
    share = 0.92 * pitch / widest
    if share >= 1:
        return
    size = max(shown[0].get_fontsize() * share, _LEAST + 0.5)
    every = -(-int(1e6 * size / shown[0].get_fontsize()) // max(int(1e6 * share), 1))
    for number, text in enumerate(shown):
        text.set_fontsize(size)
        if number % every:
            text.set_visible(False)
