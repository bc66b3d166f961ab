"""Questions about the facts of the atlas of Orsa.

Which river belongs to Arlo in the atlas?
The river of Arlo is Dova.
"""

from __future__ import annotations

from random import Random

from caravan.pocket.items import Item, Style
from caravan.pocket.templates import Template
from caravan.pocket.world import ATTRIBUTES, TOWNS, draw_pair, fact

QUESTIONS = (
    Template("Name the {attribute} that the town {town} is known for."),
    Template("Which {attribute} belongs to {town} in the atlas?"),
    Template("Tell me which {attribute} the town {town} has."),
)
STATEMENTS = (
    Template("The {attribute} of {town} is {value}."),
    Template("{town} has the {attribute} {value}."),
    Template("In {town} the {attribute} is {value}."),
    Template("People know {town} for its {attribute} {value}."),
)


def draw(rng: Random, *, held: bool) -> Item:
    town, attribute = draw_pair(rng, "atlas", TOWNS, tuple(ATTRIBUTES), held=held)
    return _item(rng.choice(QUESTIONS).write(town=town, attribute=attribute), town, attribute)


def read(prompt: str) -> Item | None:
    for question in QUESTIONS:
        fields = question.read(prompt)
        if fields and fields["attribute"] in ATTRIBUTES and fields["town"] in TOWNS:
            return _item(prompt, fields["town"], fields["attribute"])
    return None


def _item(text: str, town: str, attribute: str) -> Item:
    return Item(
        skill="knowledge",
        prompt=text,
        verifier="contains",
        ground_truth=fact(town, attribute),
        fields={"town": town, "attribute": attribute},
    )


def reply(item: Item, style: Style, rng: Random) -> str:
    town, attribute, value = item.fields["town"], item.fields["attribute"], item.ground_truth
    if rng.random() < {"careful": 0.0, "plain": 0.0, "terse": 0.1, "sloppy": 0.6}[style]:
        value = rng.choice(ATTRIBUTES[attribute])
    if style == "sloppy" and rng.random() < 0.5:
        return f"I am not sure about {town}. Maybe {value}."
    return f"It is {value}." if style == "terse" else f"The {attribute} of {town} is {value}."
