"""The heatmaps' colours as style rules, for light and dark pages."""

from __future__ import annotations

from functools import cache

from codi_engine.reporting.heatmaps import LEVELS

#: from small to large; on dark pages nothing is dark and much is bright
_SEQUENTIAL = ("#f1f4f8", "#c5dceb", "#7fb2d5", "#3b7fb6", "#1d4f8c", "#112a54")
_DIVERGING = ("#8c2d19", "#d8795b", "#f3c9b6", "#f4f4f2", "#bcd7e8", "#5b9bc6", "#1d4f8c")
_SEQUENTIAL_DARK = ("#1b222d", "#1d3956", "#255f93", "#4a93cc", "#93c7ec", "#e3f3ff")
_DIVERGING_DARK = ("#ffc2ac", "#e0765a", "#7d3a2a", "#222831", "#25486d", "#4f93cc", "#bfe2fb")


def between(stops: tuple[str, ...], share: float) -> str:
    """Return the colour at a share (0 … 1) of the way along the stops."""
    at = share * (len(stops) - 1)
    first = min(int(at), len(stops) - 2)
    a, b = (tuple(int(s[i : i + 2], 16) for i in (1, 3, 5)) for s in stops[first : first + 2])
    mixed = (round(x + (y - x) * (at - first)) for x, y in zip(a, b, strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


#: letters on light and dark cells: so far apart that one of them is read on every colour (4.5:1)
_LETTERS = ("#030508", "#ffffff")


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#rrggbb`` (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, 1 … 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def letters(colour: str) -> str:
    """Return the colour in which letters are read best on a colour."""
    return max(_LETTERS, key=lambda ink: contrast(ink, colour))


def _variables(sequential: tuple[str, ...], diverging: tuple[str, ...]) -> str:
    shades = [(f"{kind}{i}", between(stops, i / (LEVELS - 1))) for kind, stops in (("s", sequential), ("d", diverging)) for i in range(LEVELS)]
    return "".join(f"--{name}:{colour};--{name}t:{letters(colour)};" for name, colour in shades)


@cache
def rules() -> str:
    """Return the rules: one class per colour, whose value depends on the theme; print is light."""
    light, dark = _variables(_SEQUENTIAL, _DIVERGING), _variables(_SEQUENTIAL_DARK, _DIVERGING_DARK)
    classes = "\n".join(f".{kind}{i}{{background:var(--{kind}{i})}}.map .{kind}{i}{{color:var(--{kind}{i}t)}}" for kind in "sd" for i in range(LEVELS))
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{{dark}}}}}\n{classes}"
    )
