"""Programs that stand where hosted models stand in a full recipe. No model is asked.

Responders of different quality answer any prompt of the pocket world; prompt writers turn a
request that names a persona into a new prompt. A writer's reply is a JSON object with the fields
of the conversation to be made: `prompt`, `verifier` and `ground_truth`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

from caravan.data.records import Message
from caravan.pocket import skills
from caravan.pocket.items import Style

Program = Callable[[Sequence[Message], Random], str]
"""From the messages of a prompt and a random generator to a reply."""

GREETINGS = (
    "I am not sure what you mean.",
    "Please tell me more.",
    "I do not know that.",
)


def _responder(style: Style) -> Program:
    def respond(messages: Sequence[Message], rng: Random) -> str:
        item = skills.read(messages[-1].content)
        return rng.choice(GREETINGS) if item is None else skills.reply(item, style, rng)

    return respond


def _writer(skill: str) -> Program:
    def write(messages: Sequence[Message], rng: Random) -> str:
        item = skills.SKILLS[skill].draw(rng, held=False)
        return json.dumps(
            {"prompt": item.prompt, "verifier": item.verifier, "ground_truth": item.ground_truth}
        )

    return write


PROGRAMS: dict[str, Program] = {
    "careful": _responder("careful"),
    "plain": _responder("plain"),
    "terse": _responder("terse"),
    "sloppy": _responder("sloppy"),
    "math-writer": _writer("math"),
    "instruction-writer": _writer("precise_if"),
}
