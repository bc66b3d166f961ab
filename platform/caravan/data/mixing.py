"""Choosing rows: so many of each source, repeatable by seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import TypeVar

from caravan.data.records import Conversation
from caravan.recipe import MixComponent

REPEAT = "~"
"""Separates a row's id from the number of its repeat: `hardcoded/3~2` is its second copy."""

Item = TypeVar("Item")


@dataclass
class Mix:
    rows: list[Conversation] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    """Rows that a count asked for and the source no longer has, by source."""


def mix_rows(
    by_source: Mapping[str, Sequence[Conversation]], components: Iterable[MixComponent], seed: int
) -> Mix:
    """The rows each component asks for, shuffled together.

    A source's choice depends on its own rows and the seed only, so that changing one component
    leaves the choice from the others as it was.
    """
    mix = Mix()
    for component in components:
        rows = by_source[component.source]
        chosen = _choose(rows, component, generator(seed, "mix", component.source))
        mix.rows += chosen
        if component.count is not None and component.count > len(chosen):
            mix.missing[component.source] = component.count - len(chosen)
    generator(seed, "mix").shuffle(mix.rows)
    return mix


def stratified(
    by_source: Mapping[str, Sequence[Conversation]], count: int, seed: int, what: str
) -> list[Conversation]:
    """`count` rows, or all if there are fewer, from every source in proportion to its size."""
    sizes = {source: len(rows) for source, rows in by_source.items() if rows}
    shares = proportional(sizes, min(count, sum(sizes.values())))
    return [
        row
        for source, share in shares.items()
        for row in sample(by_source[source], share, generator(seed, what, source))
    ]


def proportional(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` split in proportion to `sizes`, by largest remainder; never above a size."""
    everything = sum(sizes.values())
    if not everything:
        return {}
    exact = {name: total * size / everything for name, size in sizes.items()}
    shares = {name: floor(value) for name, value in exact.items()}
    left = total - sum(shares.values())
    for name in sorted(exact, key=lambda name: (shares[name] - exact[name], name))[:left]:
        shares[name] += 1
    return shares


def sample(rows: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    """`count` different rows, in the order in which they came."""
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), count))]


def generator(seed: int, *names: str) -> random.Random:
    """A random generator of its own for every use, so that uses do not disturb each other."""
    return random.Random("/".join([str(seed), *names]))


def original_id(id: str) -> str:
    """The id of the row that a repeat is a copy of."""
    return id.partition(REPEAT)[0]


def group_by_source(rows: Iterable[Conversation]) -> dict[str, list[Conversation]]:
    """Rows by source, sources in the order in which they first appear."""
    groups: dict[str, list[Conversation]] = {}
    for row in rows:
        groups.setdefault(row.source, []).append(row)
    return groups


def count_rows(rows: Iterable[Conversation]) -> dict[str, dict[str, int]]:
    """How many rows there are by source, by skill and by licence."""
    rows = list(rows)
    return {
        "by_source": dict(sorted(Counter(row.source for row in rows).items())),
        "by_skill": dict(sorted(Counter(row.skill for row in rows).items())),
        "by_license": dict(sorted(Counter(row.license for row in rows).items())),
    }


def _choose(
    rows: Sequence[Conversation], component: MixComponent, rng: random.Random
) -> list[Conversation]:
    if component.count is not None:
        return sample(rows, min(component.count, len(rows)), rng)
    wanted = round(len(rows) * (component.weight or 1.0))
    copies, rest = divmod(wanted, len(rows)) if rows else (0, 0)
    chosen = [repeat(row, n) for n in range(1, copies + 1) for row in rows]
    return chosen + [repeat(row, copies + 1) for row in sample(rows, rest, rng)]


def repeat(row: Conversation, number: int) -> Conversation:
    """Copy `number` of a row; the first is the row itself."""
    return row if number == 1 else row.model_copy(update={"id": f"{row.id}{REPEAT}{number}"})
