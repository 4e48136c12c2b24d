"""Word problems of one to four arithmetic steps, their written solutions and their tokenizer."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from demo_training.wording import (
    EXTRA_WORDS,
    FINAL_QUESTIONS,
    ITEMS,
    MEN,
    OPENINGS,
    PRODUCT_OPENINGS,
    STEPS,
    TERMINAL_STEPS,
    UNKNOWN_ITEM,
    UNKNOWN_NAME,
    WOMEN,
    Phrase,
)

MAX_NUMBER = 99
MAX_STEPS = 4
EOS = "<|endoftext|>"
UNK = "<unk>"
OPERATORS = ("+", "-", "*", "/")
TOKEN_PATTERN = r"'s|<<|>>|[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]"
_TOKEN = re.compile(TOKEN_PATTERN)
_UNKNOWN_SHARE = 0.03


@dataclass(frozen=True)
class Step:
    """One arithmetic step; ``shown`` says whether the operand is written as a number."""

    operator: str
    operand: int
    shown: bool = True


@dataclass(frozen=True)
class Problem:
    """A chain of steps from a start value, with the wording that tells it."""

    wording: str
    start: int
    steps: tuple[Step, ...]

    def numbers(self) -> list[int]:
        """Return the numbers of the question in the order in which it names them."""
        return [self.start, *(step.operand for step in self.steps if step.shown)]

    def question(self) -> str:
        """Return the question with its numbers filled in."""
        return self.wording.format(*self.numbers())

    def values(self) -> list[int]:
        """Return the start value and the value after each step; raise ValueError if one is invalid."""
        values = [self.start]
        for step in self.steps:
            values.append(apply_step(values[-1], step))
        return values

    def answer(self) -> int:
        """Return the value after the last step."""
        return self.values()[-1]

    def written_steps(self) -> str:
        """Return the solution as calculator annotations, such as ``<<3+4=7>> <<7*2=14>>``."""
        values = self.values()
        return " ".join(f"<<{before}{step.operator}{step.operand}={after}>>" for before, step, after in zip(values, self.steps, values[1:], strict=False))

    def signature(self) -> str:
        """Return what two problems must not share when one is held out.

        It is the arithmetic (numbers and operators) from two steps on, and the whole text for
        problems of one step, whose arithmetic facts are too few to be held out.
        """
        if len(self.steps) == 1:
            return self.question()
        return self.written_steps()


def apply_step(value: int, step: Step) -> int:
    """Return the value after ``step``; raise ValueError if it is no integer in 0..99."""
    if step.operator == "/":
        if step.operand == 0 or value % step.operand:
            raise ValueError(f"{value}/{step.operand} is no integer")
        result = value // step.operand
    elif step.operator == "*":
        result = value * step.operand
    elif step.operator == "+":
        result = value + step.operand
    else:
        result = value - step.operand
    if not 0 <= result <= MAX_NUMBER:
        raise ValueError(f"{result} is outside 0..{MAX_NUMBER}")
    return result


@dataclass
class _Scene:
    """Who owns the things at this point of the story."""

    name: str
    male: bool
    item: str
    used: set[str]
    switched: bool = False


class ProblemGenerator:
    """Draws random problems; the same seed gives the same problems."""

    def __init__(self, seed: int, *, unknown_words: bool = False) -> None:
        """Seed the generator; ``unknown_words`` mixes in names and things outside the vocabulary."""
        self._rng = random.Random(seed)
        self._unknown_words = unknown_words

    def draw(self, steps: int) -> Problem:
        """Return a random valid problem of ``steps`` steps."""
        while True:
            problem = self._attempt(steps)
            if problem is not None:
                return problem

    def _attempt(self, count: int) -> Problem | None:
        """Tell a random story; None if one of its values is no integer in 0..99."""
        rng = self._rng
        scene = self._scene()
        parts: list[str] = []
        steps: list[Step] = []
        if rng.random() < 0.2:
            start, second = rng.randint(2, 9), rng.randint(2, 11)
            value = start * second
            steps.append(Step("*", second))
            parts.append(self._render(rng.choice(PRODUCT_OPENINGS), scene))
        else:
            start = value = rng.randint(2, 30) if rng.random() < 0.6 else rng.randint(2, 80)
            parts.append(self._render(rng.choice(OPENINGS), scene))
        asked = False
        while len(steps) < count:
            last = len(steps) == count - 1
            step, phrase, asked = self._step(may_end=last)
            steps.append(step)
            try:
                value = apply_step(value, step)
            except ValueError:
                return None
            if value == 0 and not last:
                return None
            parts.append(self._render(phrase, scene))
        if not asked:
            parts.append(self._render(rng.choice(FINAL_QUESTIONS), scene))
        return Problem(" ".join(parts), start, tuple(steps))

    def _step(self, *, may_end: bool) -> tuple[Step, Phrase, bool]:
        """Return a random step, its sentence, and whether that sentence asks the question."""
        rng = self._rng
        operator = rng.choices(OPERATORS, weights=(30, 30, 22, 18))[0]
        if operator in "+-":
            operand = rng.randint(2, 12) if rng.random() < 0.7 else rng.randint(2, 20)
        else:
            operand = rng.choice((2, 2, 3, 3, 4, 5))
        if may_end and operator in "*/" and rng.random() < 0.4:
            return Step(operator, operand), rng.choice(TERMINAL_STEPS[operator]), True
        phrase = rng.choice(STEPS[operator])
        while not phrase.shown and operand != 2:
            phrase = rng.choice(STEPS[operator])
        return Step(operator, operand, phrase.shown), phrase, False

    def _scene(self) -> _Scene:
        """Return a random owner and random things."""
        rng = self._rng
        male = rng.random() < 0.5
        name = rng.choice(MEN if male else WOMEN)
        item = rng.choice(ITEMS)
        if self._unknown_words:
            if rng.random() < _UNKNOWN_SHARE:
                name = UNKNOWN_NAME
            if rng.random() < _UNKNOWN_SHARE:
                item = UNKNOWN_ITEM
        return _Scene(name, male, item, {name})

    def _render(self, phrase: Phrase, scene: _Scene) -> str:
        """Return a sentence with its words filled in, and let the scene follow it."""
        rng = self._rng
        other_male = rng.random() < 0.5
        other = rng.choice(MEN if other_male else WOMEN)
        while other in scene.used:
            other = rng.choice(MEN if other_male else WOMEN)
        pronoun = "he" if scene.male else "she"
        by_name = scene.switched or rng.random() < 0.2
        text = phrase.text
        if "[M]" in text:
            scene.used.add(other)
        for slot, word in (
            ("[S]", scene.name if by_name else pronoun.capitalize()),
            ("[s]", scene.name if by_name else pronoun),
            ("[him]", "him" if scene.male else "her"),
            ("[N]", scene.name),
            ("[M]", other),
            ("[it]", scene.item),
        ):
            text = text.replace(slot, word)
        scene.switched = phrase.switches
        if phrase.switches:
            scene.name, scene.male = other, other_male
        return text


def corrupt(problem: Problem, rng: random.Random) -> tuple[Problem, str] | None:
    """Return the problem with one number of the question changed, and the change as text.

    None if no change of a random number keeps every value an integer in 0..99 and every answer new.
    """
    slots = [-1, *(i for i, step in enumerate(problem.steps) if step.shown)]
    slot = rng.choice(slots)
    old = problem.start if slot < 0 else problem.steps[slot].operand
    factor = slot >= 0 and problem.steps[slot].operator in "*/"
    candidates = [n for n in range(max(2, old - 6), old + 7) if n != old and not (factor and n > 12)]
    rng.shuffle(candidates)
    for new in candidates:
        if slot < 0:
            changed = replace(problem, start=new)
        else:
            step = replace(problem.steps[slot], operand=new)
            changed = replace(problem, steps=(*problem.steps[:slot], step, *problem.steps[slot + 1 :]))
        try:
            values = changed.values()
        except ValueError:
            continue
        if min(values[:-1]) > 0 and values[-1] != problem.answer() and new <= MAX_NUMBER:
            return changed, f"{old} -> {new}"
    return None


def split_tokens(text: str) -> list[str]:
    """Split a text into words, numbers and marks, as the tokenizer does."""
    return _TOKEN.findall(text)


def vocabulary() -> list[str]:
    """Return all tokens; a token's index is its id (numbers first, so 18 has id 18)."""
    words = [str(number) for number in range(MAX_NUMBER + 1)]
    words += [EOS, UNK, "<<", ">>", "'s", *"+-*/=.,:;?!$%'\"()"]
    seen = set(words)
    phrases: Iterable[Phrase] = [
        *OPENINGS,
        *PRODUCT_OPENINGS,
        *FINAL_QUESTIONS,
        *(phrase for group in (STEPS, TERMINAL_STEPS) for some in group.values() for phrase in some),
    ]
    texts: list[str] = ["The answer is He he She she him her his"]
    texts += [re.sub(r"\[\w+\]", " ", phrase.text) for phrase in phrases]
    texts += [" ".join((*MEN, *WOMEN, *ITEMS)), EXTRA_WORDS]
    for text in texts:
        for word in re.findall(r"[A-Za-z]+", text):
            if word not in seen:
                seen.add(word)
                words.append(word)
    return words


@dataclass(frozen=True)
class Encoded:
    """Token ids of a problem: the question, and the written steps up to the answer's number."""

    prompt: list[int]
    solution: list[int]
    answer: int
    steps: int


class Encoder:
    """Turns problems into token ids."""

    def __init__(self) -> None:
        """Build the table of ids."""
        self.ids = {word: index for index, word in enumerate(vocabulary())}
        self.unk = self.ids[UNK]
        self.eos = self.ids[EOS]
        self.lead_in = self.encode("The answer is:")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        get, unk = self.ids.get, self.unk
        return [get(token, unk) for token in split_tokens(text)]

    def problem(self, problem: Problem) -> Encoded:
        """Return the ids of a problem."""
        answer = problem.answer()
        solution = self.encode(problem.written_steps()) + self.lead_in
        return Encoded(self.encode(problem.question()), solution, answer, len(problem.steps))


def held_out_problems(seed: int, per_steps: int) -> list[Problem]:
    """Return ``per_steps`` problems of each number of steps, all of different signatures.

    No answer may make up more than a twentieth of the problems of one number of steps.
    """
    generator = ProblemGenerator(seed)
    problems: list[Problem] = []
    for steps in range(1, MAX_STEPS + 1):
        seen: set[str] = set()
        answers: dict[int, int] = {}
        while len(seen) < per_steps:
            problem = generator.draw(steps)
            answer = problem.answer()
            if problem.signature() in seen or answers.get(answer, 0) >= max(1, per_steps // 20):
                continue
            seen.add(problem.signature())
            answers[answer] = answers.get(answer, 0) + 1
            problems.append(problem)
    return problems


def held_out_pairs(seed: int, per_steps: int) -> list[tuple[Problem, Problem, str]]:
    """Return ``per_steps`` clean and corrupted problems per number of steps, in random order."""
    generator, rng = ProblemGenerator(seed), random.Random(seed)
    pairs: list[tuple[Problem, Problem, str]] = []
    for steps in range(1, MAX_STEPS + 1):
        seen: set[str] = set()
        while len(seen) < per_steps:
            clean = generator.draw(steps)
            found = None if clean.signature() in seen else corrupt(clean, rng)
            if found is not None:
                seen.add(clean.signature())
                pairs.append((clean, *found))
    rng.shuffle(pairs)
    return pairs


def training_problems(seed: int, count: int, weights: tuple[float, ...], excluded: frozenset[str]) -> Iterator[Problem]:
    """Yield ``count`` problems, none with an excluded signature, steps drawn by ``weights``."""
    generator, rng = ProblemGenerator(seed, unknown_words=True), random.Random(seed + 1)
    for steps in rng.choices(range(1, MAX_STEPS + 1), weights=weights, k=count):
        problem = generator.draw(steps)
        while problem.signature() in excluded:
            problem = generator.draw(steps)
        yield problem
