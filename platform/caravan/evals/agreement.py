"""Whether the judge agrees with people, and people with each other, about preference pairs.

A judge prefers the chosen reply of every pair. A person prefers one of the two, calls them equal,
or skips the pair, which then counts nowhere. As in MT-Bench (Zheng et al. 2023, arXiv:2306.05685,
section 4, setup S2), agreement is how likely two raters who do not call a tie agree on a pair
taken at random. Its interval is Wilson's over pairs: a pair on which people are split varies less
than one that is all or nothing, so it is rather too wide than too narrow.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from caravan.data.records import Pair
from caravan.evals.stats import Interval, wilson
from caravan.registry import Choice, PairRatingRow

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PersonsRatings:
    person: str
    counts: Mapping[str, int]
    """How many pairs by `Choice`."""
    with_judge: Interval | None
    """Share of the pairs without a tie; None where there is no such pair."""

    @property
    def rated(self) -> int:
        return sum(count for choice, count in self.counts.items() if choice != "skip")


@dataclass(frozen=True)
class Agreement:
    pairs: int
    """That somebody has rated; a skip is no rating."""
    people: list[PersonsRatings]
    """Who rated most first."""
    with_judge: Interval | None
    """Each pair counts once, by the share of its people who prefer the chosen reply."""
    among_people: Interval | None
    """Share of two people who say the same, ties included, of pairs that several have rated."""
    alpha: float | None
    """Krippendorff's, of the same pairs: 1 is perfect, 0 what chance alone gives. None where
    everyone always says the same, which chance might do as well."""


def agreement(ratings: Iterable[PairRatingRow]) -> Agreement:
    ratings = list(ratings)
    by_pair = choices(ratings)
    by_person: dict[str, list[Choice]] = defaultdict(list)
    for rating in ratings:
        by_person[rating.person].append(rating.choice)
    people = [
        PersonsRatings(name, dict(Counter(said)), _with_judge([[choice] for choice in said]))
        for name, said in sorted(by_person.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    several = [said for said in by_pair.values() if len(said) > 1]
    same = [_share(a == b for a, b in combinations(said, 2)) for said in several]
    return Agreement(
        pairs=len(by_pair),
        people=people,
        with_judge=_with_judge(by_pair.values()),
        among_people=_interval(same),
        alpha=krippendorff_alpha(several),
    )


def choices(ratings: Iterable[PairRatingRow]) -> dict[str, list[Choice]]:
    """What people said of each pair that one of them did not skip."""
    found: dict[str, list[Choice]] = defaultdict(list)
    for rating in ratings:
        if rating.choice != "skip":
            found[rating.pair_id].append(rating.choice)
    return dict(found)


def preferred(said: Iterable[Choice]) -> Choice | None:
    """The side that more people prefer; None where as many prefer the other."""
    counts = Counter(said)
    if counts["chosen"] == counts["rejected"]:
        return None
    return "chosen" if counts["chosen"] > counts["rejected"] else "rejected"


def by_people(pairs: Iterable[Pair], ratings: Iterable[PairRatingRow]) -> Iterator[Pair]:
    """The pairs that people have decided about, as they want them, without the judge's ratings,
    which may say otherwise."""
    found = choices(ratings)
    for pair in pairs:
        side = preferred(found.get(pair.id, ()))
        if side is None:
            continue
        changes: dict[str, str | None] = {"chosen_rating": None, "rejected_rating": None}
        if side == "rejected":
            changes |= {"chosen": pair.rejected, "rejected": pair.chosen}
            changes |= {"chosen_model": pair.rejected_model, "rejected_model": pair.chosen_model}
        yield pair.model_copy(update=changes)


def krippendorff_alpha(units: Iterable[Sequence[object]]) -> float | None:
    """Krippendorff's alpha of nominal values, each unit with those that it was given by its raters.

    1 - (n - 1) Σ_units o_u / Σ_c n_c (n - n_c), where o_u is the number of a unit's ordered pairs
    that differ over its number of values less one, and n_c how often the value c was given, n in
    all. Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D. Units with
    fewer than two values say nothing.

    Returns:
        None where only one value was ever given.
    """
    observed, totals = 0.0, Counter[object]()
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        differing = sum(n * (len(values) - n) for n in counts.values())
        observed += differing / (len(values) - 1)
        totals += counts
    n = totals.total()
    expected = sum(count * (n - count) for count in totals.values())
    return 1 - (n - 1) * observed / expected if expected else None


def _with_judge(pairs: Iterable[Sequence[Choice]]) -> Interval | None:
    decided = [[choice for choice in said if choice in SIDES] for said in pairs]
    shares = [_share(choice == "chosen" for choice in said) for said in decided if said]
    return _interval(shares)


def _interval(shares: Sequence[float]) -> Interval | None:
    return wilson(sum(shares), len(shares)) if shares else None


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return sum(values) / len(values)
