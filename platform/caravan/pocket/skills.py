"""The five skills, each by its module: how questions are drawn, read back and answered."""

from __future__ import annotations

from random import Random
from typing import Protocol

from caravan.pocket import atlas, chatter, constraints, lists, math_problems
from caravan.pocket.items import Item, Style


class Skill(Protocol):
    def draw(self, rng: Random, *, held: bool) -> Item: ...

    def read(self, prompt: str) -> Item | None: ...

    def reply(self, item: Item, style: Style, rng: Random) -> str: ...


SKILLS: dict[str, Skill] = {
    "math": math_problems,
    "precise_if": constraints,
    "knowledge": atlas,
    "formatting": lists,
    "chat": chatter,
}


def read(prompt: str) -> Item | None:
    """The question that `prompt` is, or None where it is none of this world's."""
    for skill in SKILLS.values():
        if item := skill.read(prompt):
            return item
    return None


def reply(item: Item, style: Style, rng: Random) -> str:
    return SKILLS[item.skill].reply(item, style, rng)
