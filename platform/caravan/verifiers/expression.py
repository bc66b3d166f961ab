"""Short answers of school mathematics in plain notation: `-3*x**2 + 2`, `7/4`, `1, 5`, `True`.

Extraction and comparison as Tülu 3 describes them for DeepMind Mathematics (section 7.3.2 of
arXiv:2411.15124): the closing sentence, without its full stop and the marks of mathematics around
it, must equal the answer as text, as a truth (yes is True), or as an expression. Where it takes
SymPy, we compare values at random points, exactly: nothing that a model wrote is evaluated as code,
and no expression is expanded.
"""

from __future__ import annotations

import ast
import math
import operator
import random
import re
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from caravan.verifiers.verdict import Verdict

MAX_CHARACTERS = 500
"""Longer answers are compared as text only."""
MAX_BITS = 20_000
"""Of a number on the way; an expression that needs more has no value here."""
POINTS = 4
"""Two expressions in fractions that differ agree at a random point once in about a million."""

Value = Fraction | float

_CLOSING = re.compile(r"answer is:?\s", re.IGNORECASE)
_HOPE = re.compile(r"\.?\s*I hope it is correct.*", re.IGNORECASE)
_DELIMITERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("[", "]"), ("`", "`"))
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_TRUTHS = {"yes": "true", "no": "false"}
_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class _NoValueError(Exception):
    """Not an expression that is understood, or one without a value at this point."""


def verify(completion: str, ground_truth: Any) -> Verdict:
    """Whether the closing sentence, or without one the last line, gives the answer."""
    said = extract(completion)
    correct = same(said, str(ground_truth))
    return Verdict(correct, float(correct), said)


def extract(completion: str) -> str:
    """What the completion settles on."""
    lines = completion.strip().splitlines()
    for line in reversed(lines):
        if found := list(_CLOSING.finditer(line)):
            return _bare(_HOPE.sub("", line[found[-1].end() :]))
    return _bare(lines[-1]) if lines else ""


def _bare(text: str) -> str:
    """Without a full stop and delimiters around it."""
    before = None
    while text != before:
        before = text
        text = text.strip().removesuffix(".").strip()
        for left, right in _DELIMITERS:
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
                text = text[len(left) : -len(right)]
    return text


def same(said: str, expected: str) -> bool:
    ours, theirs = (" ".join(text.lower().split()) for text in (said, expected))
    if ours == theirs:
        return True
    if theirs in ("true", "false"):
        return _TRUTHS.get(ours) == theirs
    if "," not in expected and _THOUSANDS.fullmatch(said):
        said = said.replace(",", "")
    try:
        return _same_values(_parsed(said), _parsed(expected))
    except _NoValueError:
        return False


def _same_values(ours: ast.expr, theirs: ast.expr) -> bool:
    names = _names(ours)
    if names != _names(theirs):
        return False
    rng = random.Random(0)
    compared = 0
    for _ in range(2 * POINTS if names else 1):
        point = {name: Fraction(rng.randint(2, 999_983), 999_983) for name in sorted(names)}
        try:
            pairs = list(zip(_values(ours, point), _values(theirs, point), strict=True))
        except ZeroDivisionError:
            continue
        except ValueError:  # one has more values than the other
            return False
        if not all(_equal(a, b) for a, b in pairs):
            return False
        compared += 1
        if compared == POINTS:
            break
    return compared > 0


def _equal(a: Value, b: Value) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return math.isclose(a, b, rel_tol=1e-9)  # a root is irrational


def _parsed(text: str) -> ast.expr:
    if not text or len(text) > MAX_CHARACTERS:
        raise _NoValueError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.replace("^", "**").strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _NoValueError from error


def _names(node: ast.expr) -> set[str]:
    return {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id not in ("sqrt", "True")
    }


def _values(node: ast.expr, point: Mapping[str, Fraction]) -> list[Value]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    try:
        return [_value(part, point) for part in parts]
    except (OverflowError, RecursionError) as error:
        raise _NoValueError from error


def _value(node: ast.expr, point: Mapping[str, Fraction]) -> Value:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            try:
                return Fraction(str(node.value))
            except ValueError as error:  # 1e999
                raise _NoValueError from error
        case ast.Name(id=name) if name in point:
            return point[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            value = _value(operand, point)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left, point), _value(right, point))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _small(_OPERATIONS[type(op)](_value(left, point), _value(right, point)))
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument], keywords=[]):
            return _power(_value(argument, point), Fraction(1, 2))
    raise _NoValueError


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) * size > MAX_BITS:
            raise _NoValueError
        power: Value = base ** int(exponent)
        return power
    if base < 0 or (base == 0 and exponent < 0):
        raise _NoValueError
    return math.pow(base, exponent)


def _small(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator.bit_length() > MAX_BITS:
        raise _NoValueError
    return value
