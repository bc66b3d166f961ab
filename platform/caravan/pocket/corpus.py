"""The text that the pocket base model is pretrained on: short documents about the invented world.

No document is a conversation: questions and answers in chat form are left to SFT. Stories and
exercises use only combinations that are not held out; the atlas tells every fact.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from caravan.data.records import Message
from caravan.data.template import render
from caravan.pocket import atlas, chatter, constraints, lists, math_problems, skills
from caravan.pocket.world import (
    ATTRIBUTES,
    NAMES,
    OBJECTS,
    TOWNS,
    draw_pair,
    fact,
    generator,
)


def wordings(count: int, seed: int) -> Iterator[str]:
    """Questions in chat form: the tokenizer is trained on them too, the base model is not."""
    rng = generator("wordings", seed)
    names = tuple(skills.SKILLS)
    for number in range(count):
        item = skills.SKILLS[names[number % len(names)]].draw(rng, held=False)
        messages = (
            Message(role="user", content=item.prompt),
            Message(role="assistant", content=skills.reply(item, "careful", rng)),
        )
        yield render(messages)


def documents(count: int, seed: int) -> Iterator[str]:
    """`count` documents, the same for the same seed."""
    rng = generator("corpus", seed)
    kinds = tuple(_KINDS)
    weights = tuple(_KINDS.values())
    for _ in range(count):
        yield rng.choices(kinds, weights)[0](rng)


def sums(rng: Random) -> str:
    """Plain arithmetic, as in a workbook: "9 less 4: 9 - 4 = 5."

    The task is what teaches a model to look up the numbers to count with. With word problems alone
    it learns that late: of runs that differ in rounding, some had not by the end.
    """
    lines = []
    for _ in range(4):
        kind = rng.choices(math_problems.KINDS, (4, 4, 2, 3, 2))[0]
        numbers = math_problems.draw_numbers(kind, rng)
        work = math_problems.steps(kind, numbers)
        lines.append(f"{_TASKS[kind].format(*numbers)}: {math_problems.written(work)}")
    return " ".join(lines)


_TASKS = {
    "add": "{} and {} more",
    "sub": "{} less {}",
    "mul": "{} times {}",
    "addsub": "{} and {} more, less {}",
    "muladd": "{} times {} and {} more",
}


def exercise(rng: Random) -> str:
    """A word problem of a school book, with its solution and the number of the page."""
    item = math_problems.draw(rng, held=False)
    solution = math_problems.reply(item, "careful", rng).partition("\n")[0]
    return f"{item.prompt}\nSolution: {solution}\nPage {rng.randint(1, 99)}."


def gazetteer(rng: Random) -> str:
    """Some facts of the atlas, in varied wording."""
    lines = []
    for _ in range(4):
        town, attribute = rng.choice(TOWNS), rng.choice(tuple(ATTRIBUTES))
        lines.append(
            rng.choice(atlas.STATEMENTS).write(
                town=town, attribute=attribute, value=fact(town, attribute)
            )
        )
    return " ".join(lines)


def town_entry(rng: Random) -> str:
    """Everything the atlas says of one town."""
    town = rng.choice(TOWNS)
    attributes = list(ATTRIBUTES)
    rng.shuffle(attributes)
    told = " ".join(f"The {a} is {fact(town, a)}." for a in attributes)
    return f"{town} is a town in Orsa. {told}"


def objects(rng: Random) -> str:
    """What some objects are made of and good for."""
    lines = [line for thing in rng.sample(OBJECTS, 2) for line in chatter.about_thing(thing)]
    return " ".join(lines)


def note(rng: Random) -> str:
    """A note about a person and an object, in one of the shapes people write notes in."""
    name, thing = draw_pair(rng, "constraints", NAMES, OBJECTS, held=False)
    town = rng.choice(TOWNS)
    lines = constraints.sentences(name, thing, town, rng)[: rng.randint(2, 4)]
    text = " ".join(lines)
    shape = rng.randrange(8)
    if shape == 0:
        return text.lower()
    if shape == 1:
        return "\n".join(f"* {line}" for line in lines)
    if shape == 2:
        return f"<<The {thing}>>\n{text}"
    if shape == 3:
        return f'"{text}"'
    if shape == 4:
        return f"{text}\nP.S. {rng.choice(constraints.END_PHRASES)}"
    if shape == 5:
        return f"{text} {rng.choice(constraints.END_PHRASES)}"
    return text


def word_list(rng: Random) -> str:
    """The same words in two of the forms lists are written in."""
    item = lists.draw(rng, held=False)
    words = item.fields["words"]
    first, second = rng.sample(tuple(lists.FORMS), 2)
    return f"{first}:\n{lists.written(first, words)}\n{second}:\n{lists.written(second, words)}"


def refrain(rng: Random) -> str:
    """A line of words that comes back: what teaches a model to look up and copy."""
    pool = rng.choice((NAMES, OBJECTS, TOWNS, (*NAMES, *OBJECTS, *TOWNS)))
    words = rng.choices(pool, k=rng.choices((2, 3, 4, 6, 8), (4, 4, 3, 2, 2))[0])
    line = " ".join(words)
    return " ".join([line] * (24 // len(words)))


_KINDS = {
    refrain: 4,
    sums: 3,
    exercise: 5,
    gazetteer: 4,
    town_entry: 3,
    objects: 1,
    note: 4,
    word_list: 5,
}
"""How often each kind of document is written."""
