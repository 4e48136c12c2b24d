"""Texts that do not match `generate.until` are drawn again with other random numbers: against a loop, one text at a time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codi_engine import Experiment, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.rollout.sampling import Sampler, generator, key_of, sample
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.plugins.models.codi import Codi, CodiOptions

Maker = Callable[..., Experiment]
UNTIL = r"[13579]\b"  # ends in an odd digit somewhere
NEW, RETRIES = 6, 3


def experiment(demo: Maker, **keys: Any) -> Experiment:
    generate = {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.6, "until": UNTIL, "retries": RETRIES}
    conditions = {"zero": {"intervention": {"plugin": "zero", "site": "resid_post.2"}, "sweep": {"step": [1, 4]}}}
    value = {"conditions": conditions, "data": {"plugin": "demo-problems", "limit": 3}, "metrics": ["accuracy"], "generate": generate, "trials": 4}
    return demo(**{**value, **keys})


def number(*parts: Any) -> int:
    return int.from_bytes(generator(*parts).bytes(16), "little")


@torch.inference_mode()
def drawn(adapter: Any, ids: list[int], latents: int, key: int) -> tuple[str, int]:
    """Draw texts until one fits; the latents are run once more for every draw, and nothing is shared."""
    from transformers import DynamicCache

    net = adapter.network
    head = net.get_output_embeddings()
    sampler = Sampler(1.6, 0, 1.0)
    for attempt in range(RETRIES + 1):
        here = key if attempt == 0 else key_of("attempt", str(key), attempt)
        cache = DynamicCache(config=net.config)
        state = net.base_model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        for _ in range(latents):
            state = net.base_model(inputs_embeds=adapter.projection(state)[:, None], past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        feed: list[int] = list(adapter.answer_start)
        tokens: list[int] = []
        while len(tokens) < NEW and not (tokens and tokens[-1] in adapter.stop_ids):
            state = net.base_model(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            logits = head(state)
            logits[:, adapter.banned_ids_from :] = float("-inf")
            tokens.append(int(sample(logits, np.array([0]), [here], [len(tokens)], sampler)[0]))
            feed = tokens[-1:]
        text = adapter.decode([t for t in tokens if t not in adapter.stop_ids])
        if re.search(UNTIL, text):
            break
    return text, attempt + 1


def test_texts_and_attempts_are_those_of_a_loop(demo: Maker, tmp_path: Path) -> None:
    made = experiment(demo)
    run = run_experiment(made, tmp_path / "run").open()
    adapter = Codi(CodiOptions(checkpoint="demo", device="cpu")).load()
    texts = {e.id: e.prompts["main"].text for e in plan_experiment(made).prepared.plan.data.examples}
    base = run.baseline
    assert len(base) == 3 * 4
    for _, row in base.iterrows():
        key = number("trial", 0, row["example"], "baseline", {}, int(row["trial"]))
        assert (row["text"], row["attempts"]) == drawn(adapter, list(adapter.encode_prompt(texts[row["example"]])), 6, key)
    cells = run.cells
    assert {1.0, 4.0} < set(cells["attempts"]) <= {1.0, 2.0, 3.0, 4.0}
    fits = cells["text"].map(lambda t: re.search(UNTIL, t) is not None)
    assert fits[cells["attempts"] <= RETRIES].all()
    assert not fits[cells["attempts"] == RETRIES + 1].all()
    assert (cells.groupby("condition")["attempts"].max() > 1).all()
    assert "attempts" in run.metrics


def test_first_draws_are_those_without_retries(demo: Maker, tmp_path: Path) -> None:
    with_them = run_experiment(experiment(demo), tmp_path / "with").open().cells
    plain = {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.6}
    without = run_experiment(experiment(demo, generate=plain), tmp_path / "without").open().cells
    assert "attempts" not in without
    once = (with_them["attempts"] == 1).to_numpy()
    assert 0 < once.sum() < len(once)
    assert (with_them["text"].to_numpy()[once] == without["text"].to_numpy()[once]).all()
    assert (with_them["text"].to_numpy()[~once] != without["text"].to_numpy()[~once]).any()


@pytest.mark.slow
def test_rows_do_not_depend_on_the_batch_or_on_growth(demo: Maker, tmp_path: Path) -> None:
    whole = run_experiment(experiment(demo, batch_size=64), tmp_path / "whole").open().cells
    single = run_experiment(experiment(demo, batch_size=1), tmp_path / "single").open().cells
    pd.testing.assert_frame_equal(whole, single, check_exact=True)
    run_experiment(experiment(demo, trials=2, data={"plugin": "demo-problems", "limit": 1}), tmp_path / "grown")
    run_experiment(experiment(demo), tmp_path / "grown")
    pd.testing.assert_frame_equal(whole, open_run(tmp_path / "grown").cells, check_exact=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(demo: Maker, tmp_path: Path) -> None:
    made = experiment(demo, data={"plugin": "demo-problems", "limit": 24}, trials=12)
    file = tmp_path / "e.yaml"
    file.write_text(made.to_yaml(), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "codi_engine", "run", "-q", str(file), "--output", "killed"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger, deadline, killed = tmp_path / "killed" / "ledger", time.monotonic() + 60, False
    while process.poll() is None and time.monotonic() < deadline:
        if ledger.exists() and ledger.read_bytes().count(b'"kind":"unit"') >= 1:
            process.send_signal(signal.SIGKILL)
            killed = True
            break
        time.sleep(0.005)
    process.wait(30)
    assert killed
    run_experiment(made, tmp_path / "killed")
    run_experiment(made, tmp_path / "whole")
    pd.testing.assert_frame_equal(open_run(tmp_path / "whole").cells, open_run(tmp_path / "killed").cells, check_exact=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"until": None}, "retries draws a text again until it matches: it needs until: PATTERN and do_sample: true"),
        ({"do_sample": False}, "retries draws a text again until it matches"),
        ({"until": "(("}, "until: '((' is no regular expression"),
        ({"retries": -1}, "generate.retries: should be greater than or equal to 0"),
        ({"retries": 101}, "generate.retries: should be less than or equal to 100"),
    ],
)
def test_bad_retries(demo: Maker, change: dict[str, Any], said: str) -> None:
    generate = {"max_new_tokens": NEW, "do_sample": True, "until": UNTIL, "retries": 2, **change}
    with pytest.raises(UserError) as caught:
        experiment(demo, generate={k: v for k, v in generate.items() if v is not None}, trials=1)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
