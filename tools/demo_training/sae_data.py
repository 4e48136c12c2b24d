"""What the demo's autoencoders are trained on, and the prompts and features of its feature study."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codi_engine.core.model import ModelAdapter
from codi_engine.core.sae import SAE
from demo_training.problems import Encoded, Encoder, Problem

GROUPS = {"more": "+*", "less": "-/"}
PROMPTS_PER_GROUP = 6
_SMALL = 1e-9


@torch.no_grad()
def model_states(lm: ModelAdapter, problems: Sequence[Encoded]) -> list[Tensor]:
    """Return per layer the states after the block, tokens × width, over questions, written steps and answers."""
    blocks = lm.network.transformer.h
    found: list[list[Tensor]] = [[] for _ in blocks]

    def keep(layer: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            found[layer].append(hidden.reshape(-1, hidden.shape[-1]))

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    lengths: dict[int, list[list[int]]] = defaultdict(list)
    for problem in problems:
        ids = [*problem.prompt, *problem.solution, problem.answer]
        lengths[len(ids)].append(ids)
    for rows in lengths.values():
        for start in range(0, len(rows), 64):
            lm.network(torch.tensor(rows[start : start + 64]))
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in found]


def later_steps(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Return per group the problems of three and four steps of which all steps after the first make it more, or less."""
    return {name: [p for p in problems if len(p.steps) >= 3 and all(s.operator in operators for s in p.steps[1:])] for name, operators in GROUPS.items()}


def write_prompts(path: Path, problems: Sequence[Problem]) -> None:
    """Write the first prompts of each group in turn, no two of them of the same operators."""
    chosen = {}
    for name, members in later_steps(problems).items():
        different = {"".join(s.operator for s in p.steps): p for p in reversed(members)}
        first = sorted(different.values(), key=members.index)
        rest = [p for p in members if p not in first]
        chosen[name] = (first + rest)[:PROMPTS_PER_GROUP]
    records = []
    for number in range(PROMPTS_PER_GROUP):
        for name, members in chosen.items():
            problem = members[number]
            fields = {"group": name, "reasoning_steps": len(problem.steps), "steps": problem.written_steps()}
            records.append({"id": f"{name}-{number + 1}", "text": problem.question(), **fields})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def choose_features(lm: ModelAdapter, saes: Sequence[SAE], groups: dict[str, list[Problem]], encoder: Encoder, count: int) -> list[dict[str, Any]]:
    """Return per layer the features whose mean code over the written steps differs most between the groups (Cohen's d).

    A feature's value is the mean over a problem's states from the last token of the question to the one before the answer;
    problems are then averaged.
    """
    means = {name: [_problem_means(lm, saes, encoder.problem(p)) for p in members] for name, members in groups.items()}
    rows = []
    for layer in range(len(saes)):
        more, less = (torch.stack([m[layer] for m in means[name]]) for name in GROUPS)
        spread = ((more.var(0) * (len(more) - 1) + less.var(0) * (len(less) - 1)) / (len(more) + len(less) - 2)).sqrt()
        effect = torch.where(spread > _SMALL, (more.mean(0) - less.mean(0)) / spread.clamp(min=_SMALL), torch.zeros_like(spread))
        for index in sorted(effect.abs().topk(count).indices.tolist()):
            values = {"more": more.mean(0)[index], "less": less.mean(0)[index], "d": effect[index]}
            rows.append({"feature": f"L{layer}-{index}", "layer": layer, "id": index, **{k: round(float(v), 5) for k, v in values.items()}})
    return rows


def _problem_means(lm: ModelAdapter, saes: Sequence[SAE], problem: Encoded) -> list[Tensor]:
    states = model_states(lm, [problem])
    first = len(problem.prompt) - 1
    return [sae.encode(states[layer][first:-1]).mean(0) for layer, sae in enumerate(saes)]


def write_features(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the chosen features as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
