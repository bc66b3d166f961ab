# ruff: noqa: E501 - a wording stays on one line
"""Word problems with one or two steps, and answers to them.

Ada has 12 kites. Ben gives Ada 7 more kites. How many kites does Ada have now?
We count 12 + 7 = 19.
#### 19
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from caravan.pocket.items import Item, Style
from caravan.pocket.templates import Template
from caravan.pocket.world import NAMES, OBJECTS, draw_pair, held_out

LARGEST = 20
"""Largest operand of a sum; what is taken from is at most ten larger."""
LARGEST_FACTOR = 6


@dataclass(frozen=True)
class Shape:
    """One wording of one kind of problem."""

    kind: str
    template: Template
    source: str
    """`book` or `letter`: the two styles of wording."""


def _shapes(source: str, kind: str, *texts: str) -> list[Shape]:
    return [Shape(kind, Template(text), source) for text in texts]


SHAPES: tuple[Shape, ...] = (
    *_shapes(
        "book",
        "add",
        "{name} has {a} {thing}s. {other} gives {name} {b} more {thing}s. How many {thing}s does {name} have now?",
        "There are {a} {thing}s in the box of {name}. {other} puts {b} {thing}s into it. How many {thing}s has {name} there?",
        "{name} made {a} {thing}s for {other}. Then {name} made {b} {thing}s. How many {thing}s did {name} make?",
    ),
    *_shapes(
        "book",
        "sub",
        "{name} had {a} {thing}s. {other} took {b} {thing}s from {name}. How many {thing}s does {name} still have?",
        "{name} had {a} {thing}s and sold {b} {thing}s to {other}. How many {thing}s has {name} left?",
        "{name} found {a} {thing}s but {name} lost {b} {thing}s. How many {thing}s does {name} have at home?",
    ),
    *_shapes(
        "book",
        "mul",
        "{name} fills {a} bags with {thing}s. Each bag of {name} gets {b} {thing}s. How many {thing}s has {name}?",
        "{name} has {a} rows of {b} {thing}s for {other}. How many {thing}s does {name} have?",
    ),
    *_shapes(
        "book",
        "addsub",
        "{name} has {a} {thing}s. {other} gives {name} {b} {thing}s. Then {name} loses {c} {thing}s. How many {thing}s does {name} have?",
        "{name} got {a} {thing}s and {b} {thing}s. {other} broke {c} {thing}s. How many good {thing}s does {name} have?",
    ),
    *_shapes(
        "book",
        "muladd",
        "{name} buys {a} packs of {b} {thing}s. Then {name} buys {c} single {thing}s. How many {thing}s has {name}?",
        "{name} has {a} shelves with {b} {thing}s each. {other} brings {c} {thing}s. How many {thing}s has {name} now?",
    ),
    *_shapes(
        "letter",
        "add",
        "My friend {name} owned {a} {thing}s, then {other} sent {b} {thing}s. Count all {thing}s that {name} owns.",
    ),
    *_shapes(
        "letter",
        "sub",
        "My friend {name} kept {a} {thing}s until {other} ate {b} {thing}s. Count the {thing}s {name} keeps.",
    ),
    *_shapes(
        "letter",
        "mul",
        "My friend {name} packed {a} crates of {thing}s. {name} put {b} {thing}s in each. Count all {thing}s of {name}.",
    ),
    *_shapes(
        "letter",
        "addsub",
        "My friend {name} picked {a} {thing}s and {b} {thing}s, then {other} stole {c} {thing}s. Count the {thing}s {name} kept.",
    ),
)
KINDS = ("add", "sub", "mul", "addsub", "muladd")


def draw_numbers(kind: str, rng: Random) -> tuple[int, ...]:
    """Operands whose results are all between 1 and 50."""
    if kind == "add":
        return rng.randint(2, LARGEST), rng.randint(2, LARGEST)
    if kind == "sub":
        a = rng.randint(5, LARGEST + 10)
        return a, rng.randint(2, a - 2)
    if kind == "mul":
        return rng.randint(2, LARGEST_FACTOR), rng.randint(2, LARGEST_FACTOR)
    if kind == "addsub":
        a, b = rng.randint(2, LARGEST), rng.randint(2, LARGEST)
        return a, b, rng.randint(2, a + b - 1)
    return rng.randint(2, LARGEST_FACTOR), rng.randint(2, LARGEST_FACTOR), rng.randint(2, 9)


def steps(kind: str, numbers: tuple[int, ...]) -> list[tuple[int, str, int, int]]:
    """The calculation: (left, sign, right, result) for each step."""
    a, b = numbers[:2]
    first = {
        "add": (a, "+", b, a + b),
        "sub": (a, "-", b, a - b),
        "mul": (a, "x", b, a * b),
        "addsub": (a, "+", b, a + b),
        "muladd": (a, "x", b, a * b),
    }[kind]
    if len(numbers) == 2:
        return [first]
    c, value = numbers[2], first[3]
    if kind == "addsub":
        return [first, (value, "-", c, value - c)]
    return [first, (value, "+", c, value + c)]


def written(work: list[tuple[int, str, int, int]]) -> str:
    return " ".join(f"{a} {sign} {b} = {result}." for a, sign, b, result in work)


def draw(
    rng: Random, *, held: bool, source: str | None = None, kinds: tuple[str, ...] = KINDS
) -> Item:
    """A random problem; held out are pairs of (name, object) and, of two-step problems, operands."""
    shapes = [s for s in SHAPES if s.kind in kinds and source in (None, s.source)]
    shape = rng.choice(shapes)
    name, thing = draw_pair(rng, "math", NAMES, OBJECTS, held=held)
    other = rng.choice([n for n in NAMES if n != name])
    while True:
        numbers = draw_numbers(shape.kind, rng)
        if len(numbers) < 3 or held_out("operands", *numbers) == held:
            break
    values = dict(zip("abc", numbers, strict=False))
    text = shape.template.write(name=name, other=other, thing=thing, **values)
    return _item(text, shape.kind, name, thing, numbers)


def read(prompt: str) -> Item | None:
    for shape in SHAPES:
        if fields := shape.template.read(prompt):
            numbers = tuple(int(fields[k]) for k in "abc" if k in fields)
            return _item(prompt, shape.kind, fields["name"], fields["thing"], numbers)
    return None


def _item(text: str, kind: str, name: str, thing: str, numbers: tuple[int, ...]) -> Item:
    answer = steps(kind, numbers)[-1][3]
    return Item(
        skill="math",
        prompt=text,
        verifier="gsm8k",
        ground_truth=str(answer),
        fields={"kind": kind, "name": name, "thing": thing, "numbers": numbers},
    )


def reply(item: Item, style: Style, rng: Random) -> str:
    kind, name, thing = (item.fields[k] for k in ("kind", "name", "thing"))
    work = steps(kind, item.fields["numbers"])
    answer = int(item.ground_truth)
    if style == "terse":
        if rng.random() < 0.15:
            answer = spoil(answer, rng)
        return rng.choice([f"The answer is {answer}.", f"#### {answer}"])
    if style == "sloppy":
        if rng.random() < 0.5:
            answer = spoil(answer, rng)
        return rng.choice(
            [f"I guess it is {answer}.", f"{answer} or so.", f"Maybe {answer}.", f"#### {answer}"]
        )
    shown = f"We count {written(work)}"
    if style == "careful":
        return f"{shown} So {name} has {answer} {thing}s.\n#### {answer}"
    return f"{shown}\n#### {answer}"


def spoil(answer: int, rng: Random) -> int:
    """A believable wrong number."""
    return max(0, answer + rng.choice((-10, -2, -1, 1, 2, 3, 10))) or answer + 1
