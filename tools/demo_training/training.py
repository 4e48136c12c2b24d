"""Self-distillation of the demo: first the teacher task alone, then teacher and student jointly."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from demo_training.model import CodiModel, ModelSize, block_mask
from demo_training.problems import MAX_NUMBER, MAX_STEPS, Encoded, Encoder, Problem, training_problems

CHUNK_UPDATES = 250
_HIDDEN = -1e9


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of the training."""

    seed: int = 20250221
    base_updates: int = 750
    joint_updates: int = 5250
    batch: int = 64
    micro_batches: int = 2
    muon_lr: float = 0.02
    adam_lr: float = 0.006
    weight_decay: float = 0.01
    warmup: int = 100
    decay: tuple[tuple[float, float], ...] = ((500 / 5250, 0.5), (4000 / 5250, 5 / 24), (1.0, 0.0))
    rewarm: int = 100
    clip: float = 1.0
    teacher_weight: float = 1.0
    distill_weight: float = 1.0
    lead_in_weight: float = 0.1
    first_mix: tuple[float, ...] = (4.0, 4.0, 2.0, 1.0)
    last_mix: tuple[float, ...] = (1.0, 2.0, 3.0, 3.0)
    mix_updates: int = 2250

    @property
    def total(self) -> int:
        """The number of updates of both stages."""
        return self.base_updates + self.joint_updates

    def rate(self, update: int) -> float:
        """Return the factor of the learning rates.

        Each stage warms up to 1. From the first point of ``decay`` on, which are shares of the joint
        stage and factors, the factor falls along the straight lines between the points.
        """
        since = update - self.base_updates
        if since < 0:
            return min(1.0, (update + 1) / self.warmup)
        part = since / self.joint_updates
        for (start, high), (end, low) in pairwise(self.decay):
            if start <= part < end:
                return high + (low - high) * (part - start) / (end - start)
        return min(1.0, (since + 1) / self.rewarm)

    def mix(self, update: int) -> tuple[float, ...]:
        """Return the shares of problems of 1, 2, 3 and 4 steps."""
        if update < self.base_updates:
            return (1.0,) * MAX_STEPS
        part = min(1.0, (update - self.base_updates) / self.mix_updates)
        return tuple(a + (b - a) * part for a, b in zip(self.first_mix, self.last_mix, strict=True))


@dataclass(frozen=True)
class Batch:
    """Problems of one prompt length and one number of steps, so that nothing is padded."""

    prompt: Tensor
    solution: Tensor
    answer: Tensor

    @property
    def size(self) -> int:
        """The number of problems."""
        return self.prompt.shape[0]


def make_batch(problems: list[Encoded]) -> Batch:
    """Return a batch of problems of equal lengths."""
    return Batch(
        torch.tensor([problem.prompt for problem in problems]),
        torch.tensor([problem.solution for problem in problems]),
        torch.tensor([problem.answer for problem in problems]),
    )


def buckets(problems: Iterable[Encoded], size: int, *, partial: bool) -> list[Batch]:
    """Group problems of equal lengths into batches; ``partial`` keeps those not filled."""
    groups: dict[tuple[int, int], list[Encoded]] = defaultdict(list)
    batches = []
    for problem in problems:
        key = (len(problem.prompt), len(problem.solution))
        groups[key].append(problem)
        if len(groups[key]) == size:
            batches.append(make_batch(groups.pop(key)))
    if partial:
        batches += [make_batch(group) for group in groups.values()]
    return batches


def teacher_pass(model: CodiModel, batch: Batch) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Run question, bot and written solution in one pass; the solution does not see bot.

    The prompt is shared by teacher and student, whose branch goes on from bot.
    """
    prompt, length = batch.prompt.shape[1], batch.solution.shape[1] + 1
    bot = torch.full((batch.size, 1), model.size.bot)
    ids = torch.cat((batch.prompt, bot, batch.solution, batch.answer[:, None]), 1)
    positions = torch.cat((torch.arange(prompt + 1), torch.arange(prompt, prompt + length)))
    mask = block_mask(prompt + 1 + length, 0)
    mask[prompt + 1 :, prompt] = _HIDDEN
    states, cache = model.run(model.embed(ids), positions, mask=mask)
    return states, [(key[:, :, : prompt + 1], value[:, :, : prompt + 1]) for key, value in cache]


def teacher_logits(model: CodiModel, batch: Batch, states: list[Tensor]) -> Tensor:
    """Return the logits that predict each solution token, the answer's number and the end."""
    prompt = batch.prompt.shape[1]
    last = states[-1]
    return model.logits(torch.cat((last[:, prompt - 1 : prompt], last[:, prompt + 1 :]), 1)).float()


def student_pass(
    model: CodiModel,
    batch: Batch,
    states: list[Tensor],
    cache: list[tuple[Tensor, Tensor]],
    lead_in: Tensor,
    *,
    zero: bool = False,
) -> list[Tensor]:
    """Run the latent loop and the answer; the states are those at eot and the answer's tokens."""
    prompt = batch.prompt.shape[1]
    cache = model.think(states[-1][:, prompt], cache, prompt + 1, zero=zero)
    eot = torch.full((batch.size, 1), model.size.eot)
    ids = torch.cat((eot, lead_in.expand(batch.size, -1), batch.answer[:, None]), 1)
    past = prompt + 1 + model.size.latents
    positions = torch.arange(past, past + ids.shape[1])
    out, _ = model.run(model.embed(ids), positions, cache, block_mask(ids.shape[1], past))
    return out


def teacher_targets(batch: Batch, eos: int) -> Tensor:
    """Return what the teacher predicts: the solution, the answer's number and the end."""
    ends = torch.full((batch.size, 1), eos)
    return torch.cat((batch.solution, batch.answer[:, None], ends), 1)


def distillation(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Return the smooth L1 distance of the states at ':' over all layers, by the teacher's std."""
    terms = []
    for target, state in zip(teacher, student, strict=True):
        goal = target[:, -2].detach().float()
        terms.append(F.smooth_l1_loss(state[:, -2].float(), goal) / goal.std())
    return torch.stack(terms).mean()


class Trainer:
    """Trains a model by a recipe; can stop and go on at the borders of chunks."""

    def __init__(self, recipe: Recipe, size: ModelSize, excluded: frozenset[str], folder: Path) -> None:
        """Create the model and the optimisers; ``folder`` takes state and log."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.size, self.excluded, self.folder = recipe, size, excluded, folder
        self.encoder = Encoder()
        self.lead_in = torch.tensor(self.encoder.lead_in)
        self.model = CodiModel(size)
        self.base: dict[str, Tensor] | None = None
        self.update = 0
        self.seconds = 0.0
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and not n.startswith("w")]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, momentum=0.95),
            torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = (recipe.muon_lr, recipe.adam_lr)

    def train(self, validation: list[Problem], stop: int | None = None) -> None:
        """Train to the end of the recipe, or to update ``stop``."""
        checks = buckets(map(self.encoder.problem, validation), 256, partial=True)
        while self.update < min(self.recipe.total, stop or self.recipe.total):
            if self.update == self.recipe.base_updates:
                self.base = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            started = time.perf_counter()
            record = self._chunk()
            self.seconds += time.perf_counter() - started
            record |= self.evaluate(checks)
            self._log(record)
            self.save()

    def _chunk(self) -> dict[str, object]:
        """Make the updates up to the next border; return the mean losses."""
        joint = self.update >= self.recipe.base_updates
        border = self.recipe.total if joint else self.recipe.base_updates
        count = min(CHUNK_UPDATES, border - self.update)
        sums: dict[str, float] = defaultdict(float)
        batches = self._batches(count)
        for _ in range(count):
            factor = self.recipe.rate(self.update)
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
            for _ in range(self.recipe.micro_batches):
                for name, value in self._backward(next(batches), joint=joint).items():
                    sums[name] += value / (count * self.recipe.micro_batches)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.update += 1
        return {"update": self.update, "joint": joint, **{k: round(v, 4) for k, v in sums.items()}}

    def _batches(self, updates: int) -> Iterator[Batch]:
        """Yield the batches of the chunk that begins now; they depend on seed and update only."""
        recipe = self.recipe
        need, turn = updates * recipe.micro_batches, 0
        mix = recipe.mix(self.update)
        while need:
            seed = recipe.seed + 1_000_003 * (self.update + 1) + 7 * turn
            count = (need + 44) * recipe.batch
            drawn = training_problems(seed, count, mix, self.excluded)
            batches = buckets(map(self.encoder.problem, drawn), recipe.batch, partial=False)
            random.Random(seed).shuffle(batches)
            yield from batches[:need]
            need, turn = need - len(batches[:need]), turn + 1

    def _backward(self, batch: Batch, *, joint: bool) -> dict[str, float]:
        """Add the gradients of one batch; return its losses."""
        recipe = self.recipe
        with torch.autocast("cpu", torch.bfloat16):
            states, cache = teacher_pass(self.model, batch)
            logits = teacher_logits(self.model, batch, states)
            loss = F.cross_entropy(logits.flatten(0, 1), teacher_targets(batch, self.encoder.eos).flatten())
            record = {"teacher": loss.item()}
            if joint:
                out = student_pass(self.model, batch, states, cache, self.lead_in)
                logits = self.model.logits(out[-1]).float()
                number = F.cross_entropy(logits[:, -2], batch.answer)
                eos = torch.full((batch.size,), self.encoder.eos)
                lead_in = F.cross_entropy(
                    torch.cat((logits[:, :-2], logits[:, -1:]), 1).flatten(0, 1),
                    torch.cat((self.lead_in.expand(batch.size, -1), eos[:, None]), 1).flatten(),
                )
                distill = distillation(states, out)
                record |= {"student": number.item(), "distill": distill.item()}
                loss = recipe.teacher_weight * loss + recipe.distill_weight * distill
                loss = loss + number + recipe.lead_in_weight * lead_in
        torch.autograd.backward(loss / recipe.micro_batches)
        return record

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> dict[str, object]:
        """Return the shares of right answers per number of steps, in fp32.

        The teacher counts as right only where every token of its written solution is right.
        """
        right: dict[str, list[int]] = {name: [0] * MAX_STEPS for name in ("teacher", "student", "zeroed")}
        count = [0] * MAX_STEPS
        for batch in batches:
            steps = (batch.solution.shape[1] - len(self.encoder.lead_in)) // 7 - 1
            states, cache = teacher_pass(self.model, batch)
            guess = teacher_logits(self.model, batch, states).argmax(-1)
            right["teacher"][steps] += int((guess == teacher_targets(batch, self.encoder.eos)).all(1).sum())
            for name, zero in (("student", False), ("zeroed", True)):
                out = student_pass(self.model, batch, states, cache, self.lead_in, zero=zero)
                guess = self.model.logits(out[-1][:, -2]).argmax(-1)
                right[name][steps] += int((guess == batch.answer).sum())
            count[steps] += batch.size
        return {
            name: [round(100 * part / max(1, whole), 1) for part, whole in zip(parts, count, strict=True)]
            for name, parts in (("acc_" + name, parts) for name, parts in right.items())
        }

    @torch.no_grad()
    def answer(self, problem: Problem) -> int | None:
        """Return the number that the student answers, in fp32; None if it is no number."""
        batch = make_batch([self.encoder.problem(problem)])
        states, cache = teacher_pass(self.model, batch)
        out = student_pass(self.model, batch, states, cache, self.lead_in)
        guess = int(self.model.logits(out[-1][:, -2]).argmax())
        return guess if guess <= MAX_NUMBER else None

    def _log(self, record: dict[str, object]) -> None:
        """Print a record and append it to the log."""
        line = json.dumps({**record, "seconds": round(self.seconds)})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """Write the state, in one step."""
        state = {
            "update": self.update,
            "seconds": self.seconds,
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "base": self.base,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        path = self.folder / "state.pt"
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self) -> bool:
        """Go on from a written state, if there is one."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.update, self.seconds, self.base = state["update"], state["seconds"], state["base"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return True
