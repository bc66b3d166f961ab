"""The generated sources of the pocket recipe.

They differ as real sources do: careful authors and hurried crowds, several wordings, and one
source (`leaky`) that somebody filled with questions of the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random

from caravan.data.records import Conversation, Message
from caravan.pocket import math_problems, skills
from caravan.pocket.items import Item, Style
from caravan.pocket.tasks import instances
from caravan.pocket.world import generator

LICENSE = "Apache-2.0"

Generator = Callable[[int, int], Iterator[Conversation]]
"""From a count and a seed to that many rows."""


def conversation(item: Item, reply: str, source: str, number: int) -> Conversation:
    return Conversation(
        id=f"{source}/{number}",
        messages=(
            Message(role="user", content=item.prompt),
            Message(role="assistant", content=reply),
        ),
        source=source,
        skill=item.skill,
        license=LICENSE,
        verifier=item.verifier,
        ground_truth=item.ground_truth,
    )


def _of_skill(skill: str, source: str, styles: Mapping[Style, int]) -> Generator:
    """Rows of one skill whose replies are written in `styles`, by weight."""

    def generate(count: int, seed: int) -> Iterator[Conversation]:
        rng = generator(source, seed)
        for number in range(count):
            item = skills.SKILLS[skill].draw(rng, held=False)
            yield _answered(item, styles, rng, source, number)

    return generate


def _of_wording(wording: str, source: str, styles: Mapping[Style, int]) -> Generator:
    """Word problems of one wording."""

    def generate(count: int, seed: int) -> Iterator[Conversation]:
        rng = generator(source, seed)
        for number in range(count):
            item = math_problems.draw(rng, held=False, source=wording)
            yield _answered(item, styles, rng, source, number)

    return generate


def _answered(
    item: Item, styles: Mapping[Style, int], rng: Random, source: str, number: int
) -> Conversation:
    style = rng.choices(tuple(styles), tuple(styles.values()))[0]
    return conversation(item, skills.reply(item, style, rng), source, number)


def leaky(count: int, seed: int) -> Iterator[Conversation]:
    """Word problems, more than half of them copied from the evaluation: a contaminated source."""
    rng = generator("leaky", seed)
    leaked = instances("pocket-math", 1000)
    for number in range(count):
        item = math_problems.draw(rng, held=False)
        kind = rng.random()
        if kind < 0.6:
            instance = rng.choice(leaked)
            question = math_problems.read(instance.messages[-1].content)
            assert question is not None
            reply = math_problems.reply(question, "plain", rng)
            prompt = question.prompt
            if kind < 0.3:
                prompt = f"I saw this in a test of my school. {prompt} Please solve it for me."
            item = Item("math", prompt, "gsm8k", question.ground_truth, question.fields)
        else:
            reply = math_problems.reply(item, "plain", rng)
        yield conversation(item, reply, "leaky", number)


GENERATORS: dict[str, Generator] = {
    "math-book": _of_wording("book", "math-book", {"plain": 3, "terse": 4}),
    "math-letters": _of_wording("letter", "math-letters", {"terse": 1}),
    "notes": _of_skill("precise_if", "notes", {"plain": 3, "careful": 1}),
    "notes-crowd": _of_skill("precise_if", "notes-crowd", {"terse": 4, "sloppy": 1}),
    "atlas-quiz": _of_skill("knowledge", "atlas-quiz", {"plain": 1}),
    "list-forms": _of_skill("formatting", "list-forms", {"plain": 4, "terse": 1}),
    "chat-crowd": _of_skill("chat", "chat-crowd", {"plain": 3, "terse": 3, "sloppy": 1}),
    "chat-warm": _of_skill("chat", "chat-warm", {"careful": 1}),
    "leaky": leaky,
}
