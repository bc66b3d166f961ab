"""Whether people agree with the judge and with each other, on numbers worked by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from caravan.data.records import Message, Pair
from caravan.evals.agreement import agreement, by_people, krippendorff_alpha
from caravan.evals.stats import wilson
from caravan.registry import PairRatingRow

AT = datetime(2026, 11, 27, tzinfo=UTC)


def ratings(**of_person: str) -> list[PairRatingRow]:
    """Of pairs 0, 1, ...: `ann="cr=s."` is chosen, rejected, tie, skip, and none of the fifth."""
    names = {"c": "chosen", "r": "rejected", "=": "tie", "s": "skip"}
    return [
        PairRatingRow(str(i), person, names[letter], AT)
        for person, letters in of_person.items()
        for i, letter in enumerate(letters)
        if letter != "."
    ]


def test_one_persons_agreement_with_the_judge_is_over_the_pairs_that_are_no_tie():
    found = agreement(ratings(ann="ccccrr==s"))

    assert found.pairs == 8
    (ann,) = found.people
    assert (ann.rated, ann.counts["tie"], ann.counts["skip"]) == (8, 2, 1)
    assert ann.with_judge == found.with_judge == wilson(4, 6)
    assert found.among_people is None
    assert found.alpha is None


def test_a_pair_that_several_rate_counts_once_against_the_judge():
    # by pair: 2 of 2, 1 of 2, 0 of 1 (the tie counts nowhere), 1 of 1
    found = agreement(ratings(ann="ccrc", bob="cr=."))

    assert found.with_judge == wilson(1 + 0.5 + 0 + 1, 4)
    assert found.among_people == wilson(1, 3)  # of three pairs that both rated they agree on one
    assert [person.person for person in found.people] == ["ann", "bob"]


def test_of_three_people_each_two_are_compared():
    found = agreement(ratings(ann="c", bob="c", eve="r"))

    assert found.among_people == wilson(1 / 3, 1)


def test_nobodys_ratings_and_skips_say_nothing():
    assert agreement([]).with_judge is None
    found = agreement(ratings(ann="ss"))
    assert (found.pairs, found.with_judge, found.people[0].rated) == (0, None, 0)


def test_alpha_of_the_published_example():
    """Krippendorff 2011, section C: four observers, twelve units, values missing; 0.743."""
    observers = ("12332141 2...", "12332241 25.3", ".3332342 251.", "12332441 251.")
    columns = zip(*(row.replace(" ", "") for row in observers), strict=True)
    units = [[value for value in column if value != "."] for column in columns]

    assert len(units) == 12
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=0.0005)


def test_alpha_is_one_for_the_same_nought_for_chance_and_undefined_without_variation():
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    many = [["a", "a"], ["b", "b"], ["a", "b"], ["b", "a"]] * 500
    assert krippendorff_alpha(many) == pytest.approx(0, abs=0.001)
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None


def test_pairs_are_as_most_people_want_them():
    def pair(i: int) -> Pair:
        return Pair(
            id=str(i), prompt=(Message(role="user", content="?"),), chosen="A", rejected="B",
            chosen_model="a", rejected_model="b", chosen_rating=5.0, rejected_rating=1.0,
            source="s", skill="chat",
        )  # fmt: skip

    kept, swapped = by_people(map(pair, range(6)), ratings(ann="crc=s", bob="=rr"))

    assert (kept.id, kept.chosen, kept.rejected, kept.chosen_model) == ("0", "A", "B", "a")
    assert (swapped.id, swapped.chosen, swapped.rejected) == ("1", "B", "A")
    assert (swapped.chosen_model, swapped.rejected_model) == ("b", "a")
    assert {kept.chosen_rating, kept.rejected_rating, swapped.chosen_rating} == {None}
