"""The quantities of a question: numbers in digits and in words, which of them may be changed, and what a step may make of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from codi_engine.core.solutions.expressions import number_value

Kind = Literal["number", "percent", "fraction", "word"]
_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {
    **{w: Fraction(i) for i, w in enumerate(_UNITS)}, **{w: Fraction(10 * i) for i, w in enumerate(_TENS, 2)},
    "hundred": Fraction(100), "thousand": Fraction(1000), "once": Fraction(1), "twice": Fraction(2), "double": Fraction(2), "doubled": Fraction(2),
    "doubles": Fraction(2), "thrice": Fraction(3), "triple": Fraction(3), "tripled": Fraction(3), "triples": Fraction(3), "quadruple": Fraction(4),
    "pair": Fraction(2), "pairs": Fraction(2), "couple": Fraction(2), "both": Fraction(2), "dozen": Fraction(12), "dozens": Fraction(12),
    "half": Fraction(1, 2), "halves": Fraction(1, 2), "halved": Fraction(1, 2), "quarter": Fraction(1, 4), "quarters": Fraction(1, 4),
    "third": Fraction(1, 3), "thirds": Fraction(1, 3), "fourth": Fraction(1, 4), "fourths": Fraction(1, 4), "fifth": Fraction(1, 5),
    "fifths": Fraction(1, 5), "sixth": Fraction(1, 6), "eighth": Fraction(1, 8), "tenth": Fraction(1, 10),
}  # fmt: skip
#: what a step may use without the question naming it, and the words that explain it
_USUAL = (
    (r"day|week|daily", {7}), (r"weekday|work|school", {5}), (r"weekend", {2}), (r"year|annual|month", {12}), (r"year|annual|week", {52}),
    (r"year|annual", {365}), (r"month.*week|week.*month", {4}), (r"month.*da[yi]|da[yi].*month", {30}), (r"hour|day", {24}),
    (r"hour|minute|second|mph|[ap]\.?m\b", {60}), (r"hour", {3600}), (r"%|percent|cent|dollar|\$|meter|discount", {100}),
    (r"kilo|kg|km|lit|gram|meter|ton", {1000}), (r"feet|foot|inch", {12}), (r"yard", {3}), (r"pound|ounce", {16}), (r"quart|gallon", {4}),
    (r"decade", {10}), (r"centur", {100}),
)  # fmt: skip
_DIGITS = re.compile(r"(?P<body>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<decimals>\.\d+)?")
_LETTERS = re.compile(r"[^\W\d_]+")
_FRACTION = re.compile(r"(\d+)/(\d+)(?![\d/])")
_MONTH = r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
_BEFORE_FIXED = re.compile(
    rf"(?:[^\W\d_]-?|\d[-–]|[#@_:/.\d]|\b{_MONTH}\.?\s|\b(?:No\.|number|room|route|grade|page|chapter|level|highway|apartment|year)\s)$", re.IGNORECASE
)
_AFTER_FIXED = re.compile(
    rf"(?:(?:st|nd|rd|th|s)\b|[:/]\d|(?!(?:mph|kmh|[kcm]?m|[km]?gs?|lbs?|oz|ft|in|m?l|mins?|hrs?|h|k?wh)\b)[^\W\d_]|\s?[ap]\.?m\b|\s?o['’]?clock|(?:\s+of)?\s+{_MONTH}\b(?!\s+(?:have|be)\b)|[-–]\d|\s+\d+/\d)",
)
_YEAR = re.compile(r"\b(?:in|since|until|during|year|of|by|from|before|after|and|to)\s$", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """What a step may make of a quantity v: ``offset + scale · v``; ``scale`` None where v cannot be replaced in it."""

    value: Fraction
    scale: Fraction | None = Fraction(1)
    offset: Fraction = Fraction(0)

    def negated(self) -> Form:
        return Form(-self.value, None if self.scale is None else -self.scale, -self.offset)


@dataclass(frozen=True)
class Quantity:
    """A number of a question at ``start:end``; ``fixed`` says why it is never changed (a word, a date …), empty when it may be."""

    text: str
    value: Fraction
    start: int
    end: int
    kind: Kind
    fixed: str = ""
    cents: bool = False

    def forms(self) -> tuple[Form, ...]:
        """Return the values that stand for this quantity in a step: 20 % is 20, 0.2, 0.8, 1.2, 80 or 120."""
        one, hundredth, v = Fraction(1), Fraction(1, 100), self.value
        if self.kind == "percent":
            shapes = [(one, 0), (hundredth, 0), (-hundredth, 1), (hundredth, 1), (-one, 100), (one, 100)]
            return tuple(Form(offset + scale * v, scale, Fraction(offset)) for scale, offset in shapes)
        if self.kind == "fraction" or (v.denominator > 1 and self.kind == "word"):
            parts = {v, Fraction(v.numerator), Fraction(v.denominator), 1 - v, 1 + v, Fraction(v.denominator - v.numerator)}
            return tuple(Form(p, None) for p in sorted(parts))
        return (Form(v), Form(v / 100, hundredth)) if self.cents else (Form(v),)


def quantities(question: str) -> tuple[Quantity, ...]:
    """Return the quantities of a question, in order."""
    found = [*_in_digits(question), *_in_words(question)]
    return tuple(sorted(found, key=lambda q: q.start))


def _in_words(question: str) -> Iterator[Quantity]:
    for match in _LETTERS.finditer(question):
        value = _WORDS.get(match[0].lower())
        if value is not None:
            yield Quantity(match[0], value, *match.span(), "word", "it is a word")
    for match in re.finditer(rf"\b({'|'.join(_TENS)})[- ]({'|'.join(_UNITS[1:10])})\b", question, re.IGNORECASE):
        yield Quantity(match[0], _WORDS[match[1].lower()] + _WORDS[match[2].lower()], *match.span(), "word", "it is a word")


def _in_digits(question: str) -> Iterator[Quantity]:
    at = 0
    while (match := _DIGITS.search(question, at)) is not None:
        fraction = _FRACTION.match(question, match.start())
        if fraction is not None and int(fraction[2]) > 0 and question[: match.start()][-1:] != "/" and len(fraction[0]) < 12:
            yield Quantity(fraction[0], Fraction(int(fraction[1]), int(fraction[2])), *fraction.span(), "fraction", "it is a fraction")
            at = fraction.end()
            continue
        at = match.end()
        yield _number(question, match)


def _number(question: str, match: re.Match[str]) -> Quantity:
    before, after = question[: match.start()], question[match.end() :]
    start = match.start()
    percent = re.match(r"\s?%|[ -]per\s?cent", after) is not None
    text = match[0]
    if question[start - 1 : start] == "." and not question[start - 2 : start - 1].isdigit() and match["decimals"] is None:
        text, start, before = "." + text, start - 1, question[: start - 1]  # .5
    cents = re.match(r"[ -]cents?\b|\s?¢", after) is not None
    return Quantity(text, number_value(text), start, match.end(), "percent" if percent else "number", _why_fixed(before, match, after), cents)


def _why_fixed(before: str, match: re.Match[str], after: str) -> str:
    year = len(match["body"]) == 4 and match["decimals"] is None and 1500 <= int(match["body"].replace(",", "")) <= 2100 and "," not in match[0]
    if year and _YEAR.search(before) and not re.match(r"\s+[a-z]", after):
        return "it may be a year"
    if _BEFORE_FIXED.search(before):
        return "it belongs to a word, a date or a name"
    return "it belongs to a word, a date, a time or a ratio" if _AFTER_FIXED.match(after) else ""


def usual(value: Fraction, question: str) -> bool:
    """True for what a step may use because of a word of the question: 7 for weeks, 60 for hours; 1 and 0 always."""
    if value in (0, 1):
        return True
    return any(value in values and re.search(words, question, re.IGNORECASE | re.DOTALL) for words, values in _USUAL)
