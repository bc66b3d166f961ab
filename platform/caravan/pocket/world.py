"""The small invented world that every text of the pocket recipe talks about.

Vocabulary, the facts of the atlas of Orsa, the facts about objects, and the rule that keeps
evaluation apart from training: `held_out`. All of it was written for this project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

HELD_OUT_SHARES = {"atlas": 3}
"""One combination in so many belongs to evaluation alone; the atlas is small, so it keeps more."""
DEFAULT_SHARE = 8


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Ben Cara Dan Ella Finn Gina Hugo Iris Jack Kira Leo Mara Nico Olga Paul Rosa Sam Tara "
    "Uma Vera Will Yara Zoe Anna Boris Clara David Emma Felix Greta Henry Ida Jonas Karin Lars "
    "Mona Nils Otto Petra Quinn Rita Simon Theo Wanda Xenia Yusuf Amir"
)

OBJECTS = _words(
    "apple book candle drum egg flute spade hat jar kite lamp mug needle onion pear rope spoon "
    "ticket vase wheel basket coin feather lemon hammer kettle ladder mirror net orange plate "
    "ribbon shell table violin whistle bell bottle carpet clock"
)
"""Regular plurals with `s`."""

TOWNS = _words(
    "Arlo Brim Corva Delm Esker Farn Gorla Hask Ilva Jorn Kelt Lorum Marn Nebra Oster Pell Quor "
    "Rusk Selva Tarn Ulm Vask Worl Yest Zell Abern Bolda Crane Dorn Elsk Fenn Gild Holm Isker "
    "Jask Korm"
)

ADJECTIVES = _words(
    "old new small large bright quiet heavy light warm smooth plain rare strong pretty simple round"
)

MATERIALS = ("wood", "glass", "clay", "wool", "iron", "paper", "silver", "straw", "bone", "leather")
USES = (
    "for work in the kitchen",
    "for play with children",
    "for long trips by boat",
    "for music at night",
    "for gifts in winter",
    "for trade at the market",
    "for luck on a journey",
    "for rest after work",
)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "river": _words("Aven Bori Calis Dova Erne Fosa Gale Hura Isen Jura Kama Lena"),
    "craft": _words(
        "weaving baking pottery carving fishing mining singing sailing hunting painting brewing "
        "printing"
    ),
    "dish": _words("soup bread stew pie rice fish beans cheese cake pasta salad honey"),
    "flower": _words("rose lily tulip daisy poppy violet iris aster clover thistle lotus orchid"),
    "animal": _words("fox bear owl wolf deer hare swan crow otter lynx goat eagle"),
    "colour": _words("red blue green yellow white black brown purple gray pink gold amber"),
}
"""What the atlas says of every town, and the values each attribute can take."""


def digest(*parts: object) -> int:
    """A number that depends on `parts` alone: the same in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(kind: str, *parts: object) -> bool:
    """Whether a combination is kept for evaluation; no training text of its skill uses it."""
    return digest("held-out", kind, *parts) % HELD_OUT_SHARES.get(kind, DEFAULT_SHARE) == 0


def generator(*parts: object) -> Random:
    """A random generator seeded by `parts`."""
    return Random(digest("seed", *parts))


def fact(town: str, attribute: str) -> str:
    """What the atlas says: `fact("Arlo", "river")` is the river of Arlo."""
    values = ATTRIBUTES[attribute]
    return values[digest("fact", town, attribute) % len(values)]


def material(thing: str) -> str:
    """What objects of this kind are made of."""
    return MATERIALS[digest("material", thing) % len(MATERIALS)]


def use(thing: str) -> str:
    """What objects of this kind are good for."""
    return USES[digest("use", thing) % len(USES)]


def article(word: str) -> str:
    return f"an {word}" if word[0].lower() in "aeiou" else f"a {word}"


def draw_pair(
    rng: Random, kind: str, first: Sequence[str], second: Sequence[str], *, held: bool
) -> tuple[str, str]:
    """A random pair on one side of the held-out rule."""
    while True:
        pair = rng.choice(first), rng.choice(second)
        if held_out(kind, *pair) == held:
            return pair
