"""Tables of plans, of a run's progress, and of runs; as JSON where it is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
from rich.measure import Measurement
from rich.table import Table

from codi_engine.cli.show import console, plain, table
from codi_engine.core.planning.costs import Costs, StageCost, money_text, size_text, time_text
from codi_engine.core.text import json_shown

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.planning.summary import PlanSummary
    from codi_engine.core.watching.status import Status


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print a table; the first columns are aligned to the left, the others to the right."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, head in enumerate(heads):
        if number < left:  # names are folded only where they are very long
            made.add_column(head, overflow="fold", min_width=min(max((len(row[number]) for row in rows), default=0), 32))
        else:
            made.add_column(head, justify="right", overflow="ellipsis", no_wrap=True)
    for row in rows:
        made.add_row(*map(plain, row))
    screen = console()
    if not screen.is_terminal:  # a file or a pipe has no width: no column is cut
        screen.width = max(screen.width, Measurement.get(screen, screen.options.update(max_width=1000), made).maximum)
    screen.print(made)


def checks(frame: pd.DataFrame, label: str = "") -> None:
    """Print what was demanded and found (``label``: of which checkpoint)."""
    import pandas as pd

    rows = frame.to_dict("records")
    console().print()
    if label:
        console().print(plain(f"checkpoint {label}", "bold"))
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in ("check", "wanted", "found"):
        made.add_column(head, overflow="fold")
    made.add_column("n", justify="right", no_wrap=True)
    made.add_column("", no_wrap=True)
    for row in rows:
        style = "red" if row["passed"] is False else ""
        cells = [plain(row[k]) for k in ("check", "wanted", "found")]
        made.add_row(*cells, plain("–" if pd.isna(row["n"]) else f"{row['n']:,}"), plain(row["result"], style))
    console().print(made)
    table([(str(row["check"]), str(row["note"])) for row in rows if row["note"]])
    failed, asked = sum(row["passed"] is False for row in rows), sum(row["passed"] is not None for row in rows)
    console().print(plain(f"{failed} of {asked} checks failed" if failed else f"all {asked} checks passed", "bold"))


# --------------------------------------------------------------------------------------------------- plan


def plans(found: Mapping[str, PlanSummary], as_json: bool) -> None:
    """Print what would be computed for every checkpoint, then what all of them come to."""
    if as_json:
        click.echo(json_shown({label: summary.to_dict() for label, summary in found.items()}))
        return
    for label, summary in found.items():
        console().print(plain(f"checkpoint {label}", "bold"))
        plan(summary, as_json=False)
        console().print()
    cells, unedited = sum(s.cells for s in found.values()), sum(s.prompts * s.prepared.plan.trials for s in found.values())
    time = sum(s.costs.seconds for s in found.values())
    table([("in all", f"{len(found)} checkpoints, one after the other: {cells:,} edited + {unedited:,} unedited cells, about {time_text(time)}")])


def plan(summary: PlanSummary, as_json: bool) -> None:
    """Print what would be computed, what each stage costs, and what all of it costs."""
    if as_json:
        click.echo(json_shown(summary.to_dict()))
        return
    table(summary.lines())
    console().print()
    costs = summary.costs
    heads = ["stage", "forwards", "time", "GPU-hours", "peak memory", "disk", *(["money"] if costs.price is not None else [])]
    rows = [_costs_row(costs, s) for s in costs.stages]
    rows.append(["total", f"{costs.rows:,}", time_text(costs.seconds), _hours(costs.gpu_hours), size_text(costs.memory), size_text(costs.disk)])
    if costs.price is not None:
        rows[-1].append(money_text(costs.money))
    grid(heads, rows)
    console().print()
    table(summary.costed())


def _costs_row(costs: Costs, stage: StageCost) -> list[str]:
    row = [stage.stage, _count(stage.rows), time_text(stage.seconds), _hours(costs.gpu_hours_of(stage)), size_text(stage.memory), size_text(stage.disk)]
    return [*row, money_text(costs.money_of(stage))] if costs.price is not None else row


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _hours(hours: float) -> str:
    return "0" if hours == 0 else f"{hours:.2g}"


# ------------------------------------------------------------------------------------------------- status


def status(found: Status, as_json: bool) -> None:
    """Print how far a run is and what it took."""
    if as_json:
        click.echo(json_shown({**found.to_dict(), "events": found.events()}))
        return
    console().print(plain(found.name, "bold"))
    rows = [("run", str(found.path)), ("state", _state(found))]
    if found.holder:
        rows.append(("written by", found.holder))
    if found.last_commit is not None:
        rows.append(("last commit", f"{_when(found.last_commit)} ({time_text(max(time.time() - found.last_commit, 0.0))} ago)"))
    if not found.whole:
        rows.append(("time left", f"about {time_text(found.seconds_left)}" if found.seconds_left is not None else "not known: no stage was timed yet"))
        rows.append(("committed", found.committed))
    rows += [("" if n else "no results", f"{name} ({why})") for n, (name, why) in enumerate(found.lacking.items())]
    if found.goes_on and not found.holder:
        rows.append(("to go on", found.goes_on if found.whole else f"repeat its command, or: {found.goes_on}"))
    if found.reused:
        rows.append(("reused", ", ".join(f"{count:,} unedited rows of {run}" for run, count in found.reused.items())))
    if found.nonfinite:
        rows.append(("not finite", found.nonfinite))
    said = [("" if n else "events", f"{e.get('time', '')[:19].replace('T', ' ')} {e['event']}: {e.get('text', '')}") for n, e in enumerate(found.events())]
    table([*rows, ("disk", size_text(found.bytes)), *said])
    console().print()
    grid(
        ["stage", "units", "cells", "cells/s", "left"],
        [
            [
                s.stage, f"{s.units:,} of {s.planned_units:,}", f"{s.cells:,} of {s.planned_cells:,}", "–" if s.rate is None else f"{s.rate:,.1f}",
                time_text(s.left) if s.left else ("0 s" if s.left == 0 else "–"),
            ]
            for s in found.stages
        ],
    )  # fmt: skip
    pairs = found.variance()
    if not pairs:
        console().print(plain("\nnothing was recorded of what it took"))
        return
    console().print()
    heads = ["stage", "estimated", "took", "variance", "forwards", "peak memory", "written"]
    grid(
        heads,
        [[a.stage, time_text(e.seconds), time_text(a.seconds), _variance(e, a), _count(a.rows), size_text(a.memory), size_text(a.disk)] for e, a in pairs],
    )


def _variance(estimate: StageCost, actual: StageCost) -> str:
    """Say how far the time was from the estimate, in per cent of it."""
    if not estimate.seconds or actual.seconds is None:
        return "–"
    return f"{(actual.seconds / estimate.seconds - 1):+.0%}"


def _state(found: Status) -> str:
    if found.state == "computed":
        return "computed, not analysed"
    if found.state in ("finished", "damaged"):
        return found.state
    return f"{found.state}, {found.share:.0%}" if found.share < 0.995 else f"{found.state}, over 99%"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# ------------------------------------------------------------------------------------------------- runs


def runs(found: Sequence[Status], cost: bool, as_json: bool) -> None:
    """Print one line per run."""
    if as_json:
        keys = ("run", "name", "hypothesis", "state", "share", "cells", "bytes", "finished", "problem")
        plain_values = [{k: v for k, v in s.to_dict().items() if cost or k in keys} for s in found]
        click.echo(json_shown(plain_values))
        return
    if not found:
        console().print(plain("no runs here"))
        return
    heads = ["run", "state", "cells", "disk", "finished", *(["time", "GPU-hours", "money", "estimated", "variance"] if cost else [])]
    grid(heads, [_run_row(s, cost) for s in found], left=2)
    for one in found:
        if one.problem:
            console().print(plain(one.problem, "yellow"), soft_wrap=True)


def _run_row(one: Status, cost: bool) -> list[str]:
    finished = (one.finished or "–").replace("T", " ").removesuffix("Z")[:16]
    row = [str(one.path), _state(one), f"{one.cells:,}", size_text(one.bytes), finished]
    if not cost:
        return row
    if not one.actual.stages:
        return [*row, "–", "–", "–", "–", "–"]
    total, expected = one.actual.total(), one.estimate.total()
    return [*row, time_text(total.seconds), _hours(one.actual.gpu_hours), money_text(one.actual.money), time_text(expected.seconds), _variance(expected, total)]
