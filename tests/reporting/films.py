"""A film made by hand for a run: what an analysis of latents would have left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from codi_engine.core.runs.results import Run

WORDS = [" 12", "4", " the", "answer", "<b>", "\u202e23", "\n", "16", " eggs", "7"]


def write_film(run: Run, examples: int = 3, ranks: int = 3, seed: int = 0) -> Path:
    """Write ``results/latent_film`` with a table ``film`` of the first pairs, patched at two places."""
    rng = np.random.default_rng(seed)
    rows = []
    for example in list(dict.fromkeys(run.cells["example"].astype(str)))[:examples]:
        for condition, layer, at in [("baseline", None, None), ("patch", 0, 0), ("patch", 3, 5)]:
            for step in range(-1, 6):
                chosen = rng.permutation(len(WORDS))[:ranks]
                chances = np.sort(rng.dirichlet(np.ones(ranks)))[::-1]
                rows += [
                    {
                        "example": example, "variant": "corrupted", "condition": condition, "edited_layer": layer, "edited_step": at, "step": step,
                        "rank": rank + 1, "token": WORDS[chosen[rank]], "probability": chances[rank],
                    }
                    for rank in range(ranks)
                ]  # fmt: skip
    table = pd.DataFrame(rows).astype({"edited_layer": "Int64", "edited_step": "Int64"})
    folder = run.path / "results" / "latent_film"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "film.parquet")
    (folder / "result.json").write_text(json.dumps({"analysis": "latent_film", "runs": [{"digest": run.digest}], "tables": ["film"]}), encoding="utf-8")
    (folder / "summary.txt").write_text("a film\n", encoding="utf-8")
    return folder
