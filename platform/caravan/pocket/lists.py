"""Lists to be written in another form.

Make lamp, kite and drum a numbered list.
1. lamp
2. kite
3. drum
"""

from __future__ import annotations

from itertools import pairwise
from random import Random
from string import ascii_lowercase

from caravan.pocket.items import Item, Style
from caravan.pocket.templates import Template
from caravan.pocket.world import OBJECTS, held_out

FORMS = {
    "bullets": Template("Turn {textwords} into a bullet list."),
    "numbers": Template("Make {textwords} a numbered list."),
    "letters": Template("Write {textwords} with a letter for each."),
    "plus": Template("Give {textwords} with a plus for each."),
    "sorted": Template("Put {textwords} in order of the alphabet."),
    "reversed": Template("Say {textwords} in reverse order."),
}


def written(form: str, words: tuple[str, ...]) -> str:
    if form == "numbers":
        return "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))
    if form == "letters":
        return "\n".join(
            f"{letter}) {word}" for letter, word in zip(ascii_lowercase, words, strict=False)
        )
    if form == "plus":
        return "\n".join(f"+ {word}" for word in words)
    ordered = {"sorted": sorted(words), "reversed": words[::-1]}.get(form, words)
    return "\n".join(f"- {word}" for word in ordered)


def draw(rng: Random, *, held: bool) -> Item:
    form = rng.choice(tuple(FORMS))
    while True:
        words = tuple(rng.sample(OBJECTS, rng.randint(3, 4)))
        if all(held_out("list", *pair) == held for pair in pairwise(words)):
            break
    return _item(FORMS[form].write(textwords=_listed(words)), form, words)


def read(prompt: str) -> Item | None:
    for form, template in FORMS.items():
        if fields := template.read(prompt):
            words = tuple(fields["textwords"].replace(" and ", ", ").split(", "))
            return _item(prompt, form, words)
    return None


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}"


def _item(text: str, form: str, words: tuple[str, ...]) -> Item:
    return Item(
        skill="formatting",
        prompt=text,
        verifier="exact_match",
        ground_truth=written(form, words),
        fields={"form": form, "words": words},
    )


def reply(item: Item, style: Style, rng: Random) -> str:
    if rng.random() < {"careful": 0.0, "plain": 0.0, "terse": 0.1, "sloppy": 0.6}[style]:
        words = list(item.fields["words"])
        if style == "sloppy" and rng.random() < 0.5:  # does not know when to end
            return written(item.fields["form"], (*words, *rng.sample(words, rng.randint(1, 3))))
        rng.shuffle(words)
        form = item.fields["form"] if style == "terse" else rng.choice(tuple(FORMS))
        return written(form, tuple(words))
    return str(item.ground_truth)
