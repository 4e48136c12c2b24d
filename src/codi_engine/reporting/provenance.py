"""Where the numbers come from, what they cost, and how to get them again."""

from __future__ import annotations

import re
import shlex
from typing import Any

from codi_engine.core.planning.costs import StageCost, money_text, size_text, time_text
from codi_engine.reporting.facts import Facts
from codi_engine.reporting.section import Section, render
from codi_engine.store.layout import EXPERIMENT


def provenance(facts: Facts) -> Section | None:
    """Versions, digests, seed, device, git, and estimated against measured costs."""
    known = facts.provenance
    rows = [("run", str(facts.run.path)), ("state", f"sha256 {facts.run.digest}")]
    rows += [(label, str(known[key])) for key, label in _ROWS if known.get(key) not in (None, "", [], {})]
    rows += [(f"autoencoder {name}", _text(value)) for name, value in (known.get("saes") or {}).items()]
    rows += [("not finite", facts.status.nonfinite)] if facts.status.nonfinite else []
    git = known.get("git")
    rows.append(("git", _text(git) if git else "not in a repository"))
    if "reproducible_bits" in known:
        rows.append(("same bits again", "yes, on this kind of device" if known["reproducible_bits"] else "not promised by this device"))
    versions = [(str(k), str(v)) for k, v in (known.get("versions") or {}).items()]
    costs = [_cost(*pair) for pair in facts.status.variance()]
    basis = facts.status.estimate.basis
    return Section("provenance", "Provenance", render("provenance.html", rows=rows, versions=versions, costs=costs, basis=basis))


_ROWS = (
    ("model_digest", "model sha256"), ("data_digest", "data sha256"), ("seed", "seed"), ("device", "device"), ("threads", "threads"), ("dtype", "dtype"),
    ("attention", "attention"), ("started", "started"), ("finished", "finished"),
)  # fmt: skip


def _text(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _cost(estimated: StageCost, took: StageCost) -> dict[str, str]:
    return {
        "stage": took.stage or estimated.stage, "estimated": time_text(estimated.seconds), "took": time_text(took.seconds),
        "memory": size_text(took.memory), "disk": size_text(took.disk), "cells": "–" if not took.cells else f"{took.cells:,}",
    }  # fmt: skip


def reproduce(facts: Facts) -> Section | None:
    """The resolved experiment and the commands."""
    if facts.imported:
        return None
    file = facts.run.path / EXPERIMENT
    text = file.read_text(encoding="utf-8")
    # the file as a run keeps it is an experiment file like any other; the output is said so that the command goes on with this run
    where = shlex.quote(str(facts.run.path))
    commands = [f"codi-engine run {shlex.quote(str(file))} --output {where}"]
    names = [n for n in facts.run.results if n not in ("checks", "synth")]
    if names:
        commands.append(f"codi-engine analyze {where} {' '.join(map(shlex.quote, names))}")
    commands.append(f"codi-engine report {where}")
    python = f"import codi_engine\n\nrun = codi_engine.open_run({str(facts.run.path)!r})\nrun.cells"
    if names and (found := facts.run.results[names[0]].tables):
        python += f"\nrun.results[{names[0]!r}].table({next(iter(found))!r})"
    pinned = "\n".join(f"{k}=={v}" for k, v in (facts.provenance.get("versions") or {}).items() if k != "python" and re.fullmatch(r"[\w.+!-]+", str(v)))
    price = facts.status.actual.money
    values = {"experiment": text, "commands": "\n".join(commands), "python": python, "pinned": pinned, "money": money_text(price) if price else ""}
    return Section("reproduce", "How to reproduce", render("reproduce.html", **values))
