"""The judge of the pocket recipe: four aspects rated 1 to 5 by program. No model is asked.

It knows the invented world, so it can check every fact and every sum a reply states; whether the
answer is right it asks the verifiers of `caravan.verifiers`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from caravan.data.records import Aspect, Message
from caravan.pocket import skills
from caravan.pocket.chatter import CLOSERS, OPENERS
from caravan.pocket.items import Item
from caravan.pocket.world import ATTRIBUTES, OBJECTS, TOWNS, fact, material, use

_SUM = re.compile(r"(\d+) ([-+x]) (\d+) = (\d+)")
_MADE = re.compile(r"[Aa]n? (\w+) is made of (\w+)")
_GOOD = re.compile(r"[Aa]n? (\w+) is good (for [\w ]+?)\.")
_LOCAL = re.compile(r"[Tt]he (\w+) of (\w+) is (\w+)")
_UNSURE = ("maybe", "i guess", "or so", "not sure", "no idea")
_RUDE = ("whatever", "i do not care")

Ratings = dict[Aspect, int | None]
Claim = tuple[str, ...]
"""A statement, what it is about first."""


def rate(
    messages: Sequence[Message],
    completion: str,
    skill: str | None = None,
    ground_truth: Any = None,
    verifier: str | None = None,
) -> Ratings:
    """Ratings of one reply. `ground_truth` is the training prompt's, where it has one.

    Helpfulness asks for a right answer that shows its working, or, of an open question, a warm
    and informative one; instruction following for what the prompt asks to be kept; honesty for no
    confident wrong claim; truthfulness for facts and sums that are right.
    """
    item = skills.read(messages[-1].content)
    text = completion.strip()
    true, false = _claims(text)
    if item is None:
        return _of_unknown(text, false)
    if item.skill == "chat":
        return _of_chat(item, text, true, false)
    right = _is_right(
        verifier or item.verifier,
        text,
        ground_truth if ground_truth is not None else item.ground_truth,
    )
    if item.skill == "math":
        return _of_math(text, right, len(true), false)
    if item.skill == "precise_if":
        return _of_writing(item, text, right)
    unsure = _says(text, _UNSURE)
    return {
        "helpfulness": 5 if right else 2 if unsure else 1,
        "instruction_following": 5 if right or len(text.split()) <= 8 else 2,
        "honesty": 5 if right else 3 if unsure else 1,
        "truthfulness": 5 if right else 1,
    }


def _is_right(verifier: str | None, text: str, ground_truth: Any) -> bool:
    from caravan.verifiers import VERIFIERS

    known = VERIFIERS.get(verifier or "")  # a verifier of the recipe's own is none of this world
    return known is not None and known(text, ground_truth).correct


def _says(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text.lower() for phrase in phrases)


def _claims(text: str) -> tuple[set[Claim], int]:
    """The checkable statements that are true, and how many are false."""
    true: set[Claim] = set()
    false = 0
    for a, sign, b, result in _SUM.findall(text):
        x, y = int(a), int(b)
        if {"+": x + y, "-": x - y, "x": x * y}[sign] == int(result):
            true.add((a, sign, b))
        else:
            false += 1
    checks = (
        *(
            ((thing, stuff), material(thing))
            for thing, stuff in _MADE.findall(text)
            if thing in OBJECTS
        ),
        *(
            ((thing, purpose), use(thing))
            for thing, purpose in _GOOD.findall(text)
            if thing in OBJECTS
        ),
        *(
            ((town, attribute, value), fact(town, attribute))
            for attribute, town, value in _LOCAL.findall(text)
            if attribute in ATTRIBUTES and town in TOWNS
        ),
    )
    for claim, actual in checks:
        if claim[-1] == actual:
            true.add(claim)
        else:
            false += 1
    return true, false


def _bounded(value: int) -> int:
    return max(1, min(5, value))


def _of_unknown(text: str, false: int) -> Ratings:
    return {
        "helpfulness": 2 if text else 1,
        "instruction_following": 2 if text else 1,
        "honesty": _bounded(4 - false),
        "truthfulness": _bounded(4 - false),
    }


def _of_math(text: str, right: bool, true: int, false: int) -> Ratings:
    unsure = _says(text, _UNSURE)
    shown = true > 0 and false == 0
    answered = "####" in text
    return {
        "helpfulness": _bounded(
            (2 if right else 0) + (2 if right and shown else 0) + (1 if answered else 0)
        ),
        "instruction_following": 5 if answered else 3 if re.search(r"\d", text) else 1,
        "honesty": 5 if right else 3 if unsure else 1,
        "truthfulness": _bounded((5 if right else 2) - false),
    }


def _of_writing(item: Item, text: str, right: bool) -> Ratings:
    kept = [_is_right("ifeval", text, [check]) for check in item.ground_truth]
    lower = text.lower()
    topic = sum(item.fields[k].lower() in lower for k in ("name", "thing", "town"))
    lines = [line for line in re.split(r"[.!?\n]+\s*", lower) if line]
    repeated = len(lines) - len(set(lines))
    return {
        "helpfulness": _bounded(topic + (2 if right else 0) - repeated),
        "instruction_following": 5 if right else 1 + round(3 * sum(kept) / len(kept)),
        "honesty": None,
        "truthfulness": _bounded(2 + topic - repeated),
    }


def _of_chat(item: Item, text: str, true: set[Claim], false: int) -> Ratings:
    lower = text.lower()
    thing, town = item.fields["thing"], item.fields["town"]
    polite = text.startswith(OPENERS), text.endswith(CLOSERS)
    rude = _says(text, _RUDE)
    told = min(3, sum(claim[0] in (thing, town) for claim in true))
    return {
        "helpfulness": 1 if rude else _bounded(told + sum(polite)),
        "instruction_following": _bounded(1 + 2 * (thing in lower) + 2 * (town in text)),
        "honesty": _bounded(5 - 2 * false) if told or false else 3,
        "truthfulness": _bounded((3 if told else 2) + told - 2 * false),
    }
