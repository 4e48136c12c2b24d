"""Foreign text in Markdown: nothing of it is read as markup, HTML or a link."""

from __future__ import annotations

import re
from collections.abc import Sequence

from codi_engine.core.text import markdown
from codi_engine.reporting.text import visible


def md(text: object, most: int = 500) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return markdown(visible(text, most))


def code(text: object, most: int = 300) -> str:
    """Return text as inline code, in one line; it may hold backticks."""
    flat = re.sub(r"\s+", " ", visible(text, most)).strip() or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", flat)), default=0) + 1)
    inner = f" {flat} " if flat.startswith("`") or flat.endswith("`") else flat
    return f"{fence}{inner}{fence}".replace("|", "\\|")


def block(text: object, most: int = 6000) -> str:
    """Return text as a fenced block, line by line as it is."""
    shown = visible(text, most)
    fence = "`" * max(max((len(run) for run in re.findall(r"`+", shown)), default=0) + 1, 3)
    return f"{fence}text\n{shown}\n{fence}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are escaped already."""
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(' --- ' for _ in heads)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
