"""Open questions about objects and towns: no right answer, but better and worse ones.

I want a kite from Arlo. What should I know?
Good question! A kite is made of paper. A kite is good for gifts in winter. ...
"""

from __future__ import annotations

from random import Random

from caravan.pocket.items import Item, Style
from caravan.pocket.templates import Template
from caravan.pocket.world import (
    ATTRIBUTES,
    MATERIALS,
    OBJECTS,
    TOWNS,
    USES,
    article,
    draw_pair,
    fact,
    material,
    use,
)

QUESTIONS = (
    Template("I want {article} {thing} from {town}. What should I know?"),
    Template("Please help me find {article} {thing} in {town}."),
    Template("Tell me what you think of {town}'s {thing}s."),
)
OPENERS = ("Good question!", "I am happy to help.", "Thank you for asking!")
CLOSERS = ("I hope this helps!", "Enjoy your time!", "Ask me more if you like!")


def draw(rng: Random, *, held: bool) -> Item:
    """A random question; held out are pairs of (object, town)."""
    thing, town = draw_pair(rng, "chat", OBJECTS, TOWNS, held=held)
    question = rng.choice(QUESTIONS)
    text = question.write(article=article(thing).split()[0], thing=thing, town=town)
    item = read(text)
    assert item is not None
    return item


def read(prompt: str) -> Item | None:
    for question in QUESTIONS:
        if fields := question.read(prompt):
            return Item("chat", prompt, None, None, fields)
    return None


def about_thing(thing: str) -> tuple[str, str]:
    return (
        f"{article(thing).capitalize()} is made of {material(thing)}.",
        f"{article(thing).capitalize()} is good {use(thing)}.",
    )


def about_town(town: str, attribute: str) -> str:
    return f"The {attribute} of {town} is {fact(town, attribute)}."


def reply(item: Item, style: Style, rng: Random) -> str:
    thing, town = item.fields["thing"], item.fields["town"]
    made, good = about_thing(thing)
    attribute = rng.choice(tuple(ATTRIBUTES))
    local = about_town(town, attribute)
    if style == "careful":
        return f"{rng.choice(OPENERS)} {made} {good} {local} {rng.choice(CLOSERS)}"
    if style == "plain":
        return " ".join(rng.sample([made, good, local], 2))
    if style == "terse":
        return rng.choice([made, good, f"Just buy {article(thing)}."])
    made = f"{article(thing).capitalize()} is made of {rng.choice(MATERIALS)}."
    good = f"{article(thing).capitalize()} is good {rng.choice(USES)}."
    local = f"The {attribute} of {town} is {rng.choice(ATTRIBUTES[attribute])}."
    return rng.choice(["I do not care.", made, good, f"{local} Whatever.", f"No idea. {good}"])
