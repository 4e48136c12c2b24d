"""Train the small CODI model that ships with codi-engine as its demo, and write it out.

Example: ``python tools/train_demo.py --output src/codi_engine/plugins/demo``
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_training.check import MODES, ExportedDemo, accuracies, final_number, is_right
from demo_training.export import (
    ALPHA,
    RANK,
    write_base,
    write_checkpoint,
    write_json,
    write_pairs,
    write_problems,
)
from demo_training.model import ModelSize
from demo_training.problems import MAX_STEPS, Problem, held_out_pairs, held_out_problems, vocabulary
from demo_training.training import Recipe, Trainer

TEST_PER_STEPS = 100
VALIDATION_PER_STEPS = 128
PAIRS_PER_STEPS = 75


@dataclass(frozen=True)
class HeldOut:
    """Problems that the training never sees."""

    test: list[Problem]
    validation: list[Problem]
    pairs: list[tuple[Problem, Problem, str]]

    @classmethod
    def draw(cls, seed: int) -> HeldOut:
        """Draw all held-out problems."""
        return cls(
            held_out_problems(seed + 1, TEST_PER_STEPS),
            held_out_problems(seed + 2, VALIDATION_PER_STEPS),
            held_out_pairs(seed + 3, PAIRS_PER_STEPS),
        )

    def signatures(self) -> frozenset[str]:
        """Return what the training must exclude."""
        sides = [side for clean, corrupted, _ in self.pairs for side in (clean, corrupted)]
        return frozenset(problem.signature() for problem in (*self.test, *self.validation, *sides))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished demo")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder of state and log")
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--base-updates", type=int, default=recipe.base_updates)
    parser.add_argument("--joint-updates", type=int, default=recipe.joint_updates)
    parser.add_argument("--stop-at", type=int, help="end early, at a multiple of 250 updates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export-only", action="store_true", help="write out the state as it is")
    return parser.parse_args()


def card(trainer: Trainer, table: dict[str, dict[str, float]], sizes: dict[str, int]) -> dict[str, object]:
    """Return what the demo's card says."""
    recipe, size = trainer.recipe, trainer.size
    return {
        "name": "codi-engine demo",
        "summary": "A small CODI model trained from scratch on word problems of 1 to 4 arithmetic steps.",
        "codi": {
            "r": RANK,
            "alpha": ALPHA,
            "num_latent": size.latents,
            "prj_dim": size.width,
            "remove_eos": True,
        },
        "model": {
            "family": "gpt2",
            "layers": size.layers,
            "width": size.width,
            "heads": size.heads,
            "vocab_size": size.vocab,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
        },
        "training": {
            "seed": recipe.seed,
            "updates": trainer.update,
            "base_updates": min(trainer.update, recipe.base_updates),
            "planned_updates": recipe.total,
            "problems_per_update": recipe.batch * recipe.micro_batches,
            "minutes_on_one_core": round(trainer.seconds / 60, 1),
        },
        "accuracy": {
            "note": "percent right, greedy, one question at a time, fp32, from the exported file, on the"
            " problems of problems.jsonl, which are not in the training set",
            "n_per_number_of_steps": TEST_PER_STEPS,
            "by_steps": table["latents"],
            "by_steps_latents_zeroed": table["zeroed"],
            "by_steps_bot_then_eot": table["skipped"],
            "by_steps_teacher": table["teacher"],
        },
        "bytes": sizes,
    }


def agreement(trainer: Trainer, demo: ExportedDemo, problems: list[Problem]) -> tuple[int, int]:
    """Return how many questions the training code and the exported files answer alike.

    The second count is that of the exported answers of the exact form ``The answer is: N``.
    """
    alike = exact = 0
    for problem in problems:
        text = demo.answer(problem.question())
        alike += final_number(text) == trainer.answer(problem)
        exact += re.fullmatch(r"The answer is: \d+", text) is not None
    return alike, exact


def export(trainer: Trainer, held_out: HeldOut, output: Path) -> None:
    """Write the demo into a temporary folder, check it there, and move its files to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    if trainer.base is None:
        raise SystemExit("the joint stage has not begun; there is nothing to export")
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".demo-") as name:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint", trainer.model, trainer.base)
        write_base(folder / "base", trainer.size)
        demo = ExportedDemo(folder / "base", folder / "checkpoint", trainer.size.latents)
        alike, exact = agreement(trainer, demo, held_out.test)
        print(f"of {len(held_out.test)} answers, {alike} as in training, {exact} of the exact form")
        table = accuracies(demo, held_out.test)
        both = [is_right(demo, clean) and is_right(demo, corrupted) for clean, corrupted, _ in held_out.pairs]
        write_problems(folder / "problems.jsonl", held_out.test)
        write_pairs(folder / "pairs.jsonl", held_out.pairs, both)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
        write_json(folder / "card.json", card(trainer, table, sizes))
        for path in (*files, folder / "card.json"):
            target = output / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)
            path.replace(target)
    for mode in MODES:
        print(f"{mode:>8}", "  ".join(f"{table[mode][str(s)]:5.1f}" for s in range(1, MAX_STEPS + 1)))
    print(f"pairs with both sides right: {sum(both)} of {len(both)}; bytes: {sum(sizes.values())}")


def main() -> None:
    """Train, or go on training, and export."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(seed=arguments.seed, base_updates=arguments.base_updates, joint_updates=arguments.joint_updates)
    held_out = HeldOut.draw(recipe.seed)
    arguments.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, ModelSize(len(vocabulary())), held_out.signatures(), arguments.work)
    if trainer.load():
        print(f"going on from update {trainer.update}")
    if not arguments.export_only:
        trainer.train(held_out.validation, arguments.stop_at)
    export(trainer, held_out, arguments.output)


if __name__ == "__main__":
    main()
