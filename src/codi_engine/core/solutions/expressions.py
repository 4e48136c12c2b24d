"""Arithmetic as people write it (``$1,200 * 50%``), read with exact fractions; each number is an operand of its own."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

#: characters of an expression and digits of a number that are read
LONGEST = 400
_DIGITS = 40
_NUMBER = re.compile(r"(?P<body>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)\s*(?P<percent>%)?")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "$": " ", "€": " ", "£": " ", "[": "(", "]": ")", "{": "(", "}": ")"})
_TIMES = re.compile(r"(?<=[\d)%])\s*[xX]\s*(?=[\d(.$])")
_SIGN = re.compile(r"(?:^|(?<=[-+*/(]))-_(\d+)_")
_PRODUCT = re.compile(r"(?<=[_)])\s*(?=\()|(?<=\))\s*(?=_)")


@dataclass(frozen=True)
class Operand:
    """A number of an expression: ``50%`` has the value 1/2."""

    value: Fraction
    text: str


@dataclass(frozen=True)
class Expression:
    """An expression whose numbers can be replaced."""

    text: str
    operands: tuple[Operand, ...]
    tree: ast.expr

    def evaluate(self, values: Sequence[Fraction] | None = None) -> Fraction | None:
        """Return the value with these numbers in the operands' places (default: their own); None for a division by zero."""
        numbers = [o.value for o in self.operands] if values is None else values
        try:
            return _value(self.tree, numbers)
        except ZeroDivisionError:
            return None


def number_value(text: str) -> Fraction:
    """Return the value of digits with thousands separators, such as ``1,200.50`` or ``.5``."""
    body = text.replace(",", "")
    return Fraction("0" + body if body.startswith(".") else body.rstrip("."))


def read_expression(text: str) -> Expression | None:
    """Return the expression, or None where it is not plain arithmetic of + − × ÷ and parentheses."""
    if len(text) > LONGEST:
        return None
    operands: list[Operand] = []

    def place(match: re.Match[str]) -> str:
        value = number_value(match["body"]) if len(match["body"]) <= _DIGITS else Fraction(0)
        operands.append(Operand(value / 100 if match["percent"] else value, match[0].strip()))
        return f" _{len(operands) - 1}_ "

    if any(len(run) > _DIGITS for run in re.findall(r"\d+", text)) or "_" in text:
        return None
    named = _NUMBER.sub(place, _TIMES.sub("*", text.translate(_SIGNS)))
    named = _PRODUCT.sub("*", re.sub(r"\s+", "", named))
    if not operands or "__" in named or re.search(r"[^-_\d+*/()]", named):  # __: two numbers side by side
        return None
    named = _SIGN.sub(lambda match: _negative(match, operands), named)
    tree = _tree(named)
    return Expression(text.strip(), tuple(operands), tree) if tree is not None and _plain(tree) else None


def _negative(match: re.Match[str], operands: list[Operand]) -> str:
    """Make a sign part of its number, so that −3 can be a result that is −3."""
    operand = operands[int(match[1])]
    operands[int(match[1])] = Operand(-operand.value, f"-{operand.text}")
    return match[0][1:]


def _tree(text: str) -> ast.expr | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "is not callable" and the like: the tree is checked, not run
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _plain(node: ast.expr) -> bool:
    """True where a tree holds operands and the four operations only."""
    if isinstance(node, ast.Name):
        return True
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd)) and _plain(node.operand)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)) and _plain(node.left) and _plain(node.right)
    return False


def _value(node: ast.expr, numbers: Sequence[Fraction]) -> Fraction:
    if isinstance(node, ast.Name):
        return numbers[int(node.id.strip("_"))]
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, numbers)
        return -inner if isinstance(node.op, ast.USub) else inner
    assert isinstance(node, ast.BinOp)
    left, right = _value(node.left, numbers), _value(node.right, numbers)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    return left * right if isinstance(node.op, ast.Mult) else left / right
