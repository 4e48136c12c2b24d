"""Runs to report on, made once, and a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.core.imports.importing import import_files
from codi_engine.core.running.run import run_experiment
from codi_engine.reporting import report
from tests.reporting.runs import patched, planted  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo on a few pairs, with importance and a check."""
    folder = tmp_path_factory.mktemp("report-demo")
    value: dict[str, Any] = {
        "name": "small-demo", "hypothesis": "Layer 1 carries the answer.", "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
        "data": {"plugin": "demo-pairs", "limit": 5},
        "conditions": {
            "patch": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": "all", "step": "all"}},
            "zero": {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": "all"}},
        },
        "metrics": ["normalized_effect", "kl", "accuracy"], "generate": {"max_new_tokens": 8}, "controls": "none",
        "analyses": ["importance"], "checks": {"accuracy": ">= 0.01", "kl": "<= 100"},
    }  # fmt: skip
    with chdir(folder):
        return run_experiment(Experiment.from_dict(value), folder / "run").path


HOSTILE = {
    "markup": "<img src=x onerror=window.pwned=1><b>bold</b>",
    "end": "</script><script>window.pwned=2</script><!-- <script>",
    "quote": '" onmouseover="window.pwned=3" x=\'',
    "control": "a\x1b[31mred\x00\x07\x7f\x9b end",
    "bidi": "user\u202egnp.exe\u2066 \u200b\u061c \u05e9\u05dc\u05d5\u05dd",
    "formula": '=HYPERLINK("http://example.invalid/"; "x") {{7*7}} ${7*7} {% raw %}',
    "word": "W" * 10_000,
    "line": "one\u2028two\u2029three\ntab\there",
    "link": "<a href=javascript:window.pwned=4>x</a><svg/onload=window.pwned=5><iframe src=http://example.invalid/>",
}


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an imported run whose answers, examples and conditions are hostile."""
    folder = tmp_path_factory.mktemp("report-hostile")
    lines = []
    for name, text in HOSTILE.items():
        for condition in ("baseline", HOSTILE["end"], "x" * 300):
            lines.append(
                {
                    "e": f"{name} {text[:60]}",
                    "c": condition,
                    "r": text if condition != "baseline" else f"was {text}",
                    "s": 0,
                    "a": float(condition == "baseline"),
                }
            )
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with chdir(folder):
        maps = ["example=e", "condition=c", "step=s", "text=r", "metrics/accuracy=a"]
        path = import_files(["log.jsonl"], maps, "hostile", str(folder / "run"), None).path
    result = path / "results" / "nasty"
    result.mkdir(parents=True)
    (result / "summary.txt").write_text("\n".join(HOSTILE.values()), encoding="utf-8")
    import pandas as pd

    frame = pd.DataFrame(
        {"condition": list(HOSTILE.values()), "step": range(len(HOSTILE)), "n": 3, "mean": 0.5, "ci_low": 0.0, "ci_high": 1.0, "note": list(HOSTILE.values())}
    )
    frame.to_parquet(result / "effects.parquet")
    frame.rename(columns={"note": HOSTILE["markup"]}).to_parquet(result / "other.parquet")
    return path


@pytest.fixture
def show(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a function that opens a file; nothing may be said on the console, thrown or requested."""
    said: list[str] = []
    opened = []

    def open_(path: Path, expect_errors: bool = False, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        opened.append(context)
        page = context.new_page()
        if not expect_errors:
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda asked: None if asked.url == path.as_uri() or asked.url.startswith("data:") else said.append(asked.url))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in opened:
        context.close()
    assert said == []


@pytest.fixture(scope="session")
def demo_page(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(demo_run, tmp_path_factory.mktemp("page") / "demo.html")


@pytest.fixture(scope="session")
def hostile_page(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(hostile_run, tmp_path_factory.mktemp("page") / "hostile.html")
