"""Writing tasks with constraints that a program can check: ids and kwargs are IFEval's.

    Write a note about Arlo and Ada's kite. Do not use any commas. With Ada's kite,
    end with: All is well.

    Ada has a kite from Arlo. The kite is small and bright. All is well.

Every eight words of a prompt hold the name and the object: what the n-gram rule of decontamination
sees of two prompts then differs wherever the pair does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from caravan.pocket.items import Item, Style
from caravan.pocket.templates import Template
from caravan.pocket.world import ADJECTIVES, NAMES, OBJECTS, TOWNS, article, draw_pair, material

TASKS = (
    Template("Write a note about {town} and {name}'s {thing}."),
    Template("Tell us something of {town} and {name}'s {thing}."),
)

END_PHRASES = (
    "That is all.",
    "See you soon.",
    "Time will tell.",
    "Now you know.",
    "Thank you all.",
    "Good night now.",
    "All is well.",
    "This is true.",
)
FORBIDDEN = ("very", "market", "friend", "people", "day", "home", "good", "long")
"""Common words of the sentences below."""


@dataclass(frozen=True)
class Constraint:
    """One kind of constraint: its IFEval id, its wording, and how its kwargs are drawn."""

    id: str
    template: Template
    draw: Callable[[Random, str], dict[str, Any]]
    """From the object of the task; the values of the template's fields."""
    kwargs: Callable[[dict[str, Any]], dict[str, Any]]
    """The checker's arguments, from the fields."""


def _nothing(_rng: Random, _thing: str) -> dict[str, Any]:
    return {}


def _no_kwargs(_fields: dict[str, Any]) -> dict[str, Any]:
    return {}


def _one_keyword(rng: Random, thing: str) -> dict[str, Any]:
    return {"first": rng.choice([o for o in OBJECTS if o != thing])}


def _two_keywords(rng: Random, thing: str) -> dict[str, Any]:
    first, second = rng.sample([o for o in OBJECTS if o != thing], 2)
    return {"first": first, "second": second}


CONSTRAINTS: tuple[Constraint, ...] = (
    Constraint(
        "change_case:english_lowercase",
        Template("use only lowercase letters"),
        _nothing,
        _no_kwargs,
    ),
    Constraint("punctuation:no_comma", Template("do not use any commas"), _nothing, _no_kwargs),
    Constraint(
        "startend:end_checker",
        Template("end with: {textend}"),
        lambda rng, _: {"textend": rng.choice(END_PHRASES).removesuffix(".")},
        lambda fields: {"end_phrase": f"{fields['textend']}."},
    ),
    Constraint("startend:quotation", Template("put it all in double quotes"), _nothing, _no_kwargs),
    Constraint(
        "detectable_format:number_bullet_lists",
        Template("use exactly {n} bullets"),
        lambda rng, _: {"n": rng.randint(2, 4)},
        lambda fields: {"num_bullets": int(fields["n"])},
    ),
    Constraint(
        "keywords:existence",
        Template("include the word {first}"),
        _one_keyword,
        lambda fields: {"keywords": [fields["first"]]},
    ),
    Constraint(
        "keywords:existence",
        Template("include the words {first} and {second}"),
        _two_keywords,
        lambda fields: {"keywords": [fields["first"], fields["second"]]},
    ),
    Constraint(
        "keywords:forbidden_words",
        Template("avoid the word {first}"),
        lambda rng, _: {"first": rng.choice(FORBIDDEN)},
        lambda fields: {"forbidden_words": [fields["first"]]},
    ),
    Constraint(
        "detectable_format:title",
        Template("put a title in << >>"),
        _nothing,
        _no_kwargs,
    ),
    Constraint(
        "detectable_content:postscript",
        Template("finish with a P.S"),
        _nothing,
        lambda _: {"postscript_marker": "P.S."},
    ),
    Constraint(
        "length_constraints:number_sentences",
        Template("write at least {n} sentences"),
        lambda rng, _: {"n": rng.randint(3, 5)},
        lambda fields: {"num_sentences": int(fields["n"]), "relation": "at least"},
    ),
    Constraint(
        "length_constraints:number_sentences",
        Template("write less than {n} sentences"),
        lambda rng, _: {"n": rng.randint(2, 3)},
        lambda fields: {"num_sentences": int(fields["n"]), "relation": "less than"},
    ),
)

_CONFLICTS = (
    ("change_case:english_lowercase", "detectable_content:postscript"),
    ("change_case:english_lowercase", "startend:end_checker"),
    ("startend:end_checker", "detectable_content:postscript"),
    ("startend:quotation", "detectable_format:number_bullet_lists"),
    ("startend:quotation", "detectable_format:title"),
    ("startend:end_checker", "detectable_format:number_bullet_lists"),
    ("length_constraints:number_sentences", "detectable_format:number_bullet_lists"),
    ("length_constraints:number_sentences", "detectable_content:postscript"),
    ("length_constraints:number_sentences", "detectable_format:title"),
    ("length_constraints:number_sentences", "startend:end_checker"),
)


def compatible(ids: list[str]) -> bool:
    """No id twice, and no two that a reply cannot keep together."""
    return len(set(ids)) == len(ids) and not any(a in ids and b in ids for a, b in _CONFLICTS)


def draw(rng: Random, *, held: bool) -> Item:
    """A random task with one to three constraints; held out are pairs of (name, object)."""
    name, thing = draw_pair(rng, "constraints", NAMES, OBJECTS, held=held)
    town = rng.choice(TOWNS)
    parts = [rng.choice(TASKS).write(name=name, thing=thing, town=town)]
    wanted = rng.choices((1, 2, 3), (4, 4, 2))[0]
    while True:
        chosen = rng.sample(CONSTRAINTS, wanted)
        if compatible([c.id for c in chosen]):
            break
    checks: list[dict[str, Any]] = []
    for constraint in chosen:
        fields = constraint.draw(rng, thing)
        wish = constraint.template.write(**fields)
        parts.append(
            f"With {name}'s {thing}, {wish}." if checks else f"{wish[0].upper()}{wish[1:]}."
        )
        checks.append({"id": constraint.id, "kwargs": constraint.kwargs(fields)})
    return _item(" ".join(parts), name, thing, town, checks)


def read(prompt: str) -> Item | None:
    for template in TASKS:
        if fields := template.find(prompt):
            wishes = _lowered(prompt)
            checks = [
                {"id": c.id, "kwargs": c.kwargs(found)}
                for c in CONSTRAINTS
                if (found := c.template.find(wishes)) is not None
            ]
            if checks:
                return _item(prompt, fields["name"], fields["thing"], fields["town"], checks)
    return None


def _lowered(prompt: str) -> str:
    """The prompt with the first wish, which follows the first full stop, in lower case."""
    task, stop, wishes = prompt.partition(". ")
    return task + stop + wishes[:1].lower() + wishes[1:]


def _item(text: str, name: str, thing: str, town: str, checks: list[dict[str, Any]]) -> Item:
    return Item(
        skill="precise_if",
        prompt=text,
        verifier="ifeval",
        ground_truth=checks,
        fields={"name": name, "thing": thing, "town": town},
    )


def sentences(name: str, thing: str, town: str, rng: Random) -> list[str]:
    """Ten things to say about a person and an object, in random order after the first."""
    a, b = rng.sample(ADJECTIVES, 2)
    first = rng.choice(
        [
            f"{name} has {article(thing)} from {town}.",
            f"{name} got {article(thing)} in {town}.",
            f"In {town}, {name} found {article(thing)}.",
        ]
    )
    rest = [
        f"The {thing} is {a} and {b}.",
        f"It is a very {a} {thing}.",
        f"It was made of {material(thing)}.",
        f"People in {town} like the {thing}.",
        f"{name} took it home after a long day.",
        f"A good friend of {name} wants it, too.",
        f"It came from the market in {town}.",
        f"The {thing} is {a}, {b} and good.",
    ]
    rng.shuffle(rest)
    return [first, *rest]


def reply(item: Item, style: Style, rng: Random) -> str:
    checks = list(item.ground_truth)
    if style == "terse" and rng.random() < 0.25:
        checks.pop(rng.randrange(len(checks)))
    if style == "sloppy":
        checks = [c for c in checks if rng.random() < 0.35]
    return compose(item, checks, rng, wanted=2)


def compose(item: Item, checks: list[dict[str, Any]], rng: Random, wanted: int) -> str:
    """A text about the item's subject that keeps `checks`, and the rest only by luck."""
    kwargs: dict[str, dict[str, Any]] = {c["id"]: c["kwargs"] for c in checks}
    pool = sentences(item.fields["name"], item.fields["thing"], item.fields["town"], rng)
    if "punctuation:no_comma" in kwargs:
        name, thing, town = (item.fields[k] for k in ("name", "thing", "town"))
        plain = [] if "," not in pool[0] else [f"{name} has {article(thing)} from {town}."]
        pool = plain + [s for s in pool if "," not in s]
    if avoid := kwargs.get("keywords:forbidden_words"):
        pool = [s for s in pool if avoid["forbidden_words"][0] not in _words_of(s)]
    limit = kwargs.get("length_constraints:number_sentences", {})
    if limit:
        wanted = limit["num_sentences"] - (limit["relation"] == "less than")
    if keep := kwargs.get("keywords:existence"):
        words = " and ".join(article(w) for w in keep["keywords"])
        pool.insert(1, f"It comes with {words}.")
        if limit.get("relation") != "less than":
            wanted = max(wanted, 2)
        elif wanted == 1:
            pool[0] = pool[0].removesuffix(".") + f" with {words}."
    if bullets := kwargs.get("detectable_format:number_bullet_lists"):
        text = "\n".join(f"* {line}" for line in pool[: bullets["num_bullets"]])
    else:
        text = " ".join(pool[:wanted])
    return _dressed(text, item.fields["thing"], kwargs, rng)


def _words_of(sentence: str) -> list[str]:
    return sentence.lower().replace(".", " ").replace(",", " ").split()


def _dressed(text: str, thing: str, kwargs: dict[str, dict[str, Any]], rng: Random) -> str:
    """The text with what goes before, after and around it."""
    if "detectable_format:title" in kwargs:
        text = f"<<The {thing}>>\n{text}"
    if end := kwargs.get("startend:end_checker"):
        text = f"{text} {end['end_phrase']}"
    if "detectable_content:postscript" in kwargs:
        text = f"{text}\nP.S. The {thing} is {rng.choice(ADJECTIVES)}."
    if "change_case:english_lowercase" in kwargs:
        text = text.lower()
    if "startend:quotation" in kwargs:
        text = f'"{text}"'
    return text
