from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.data.mixing import group_by_source, mix_rows, original_id, proportional, stratified
from caravan.data.records import Conversation, Message
from caravan.recipe import MixComponent


def rows(source: str, count: int) -> list[Conversation]:
    return [
        Conversation(
            id=f"{source}/{n}",
            messages=(Message(role="user", content="hi"),),
            source=source,
            skill="chat",
            license="MIT",
        )
        for n in range(count)
    ]


BY_SOURCE = {"a": rows("a", 10), "b": rows("b", 40), "c": rows("c", 1)}


@pytest.mark.parametrize(
    ("weight", "expected"), [(None, 10), (0.5, 5), (1.0, 10), (2.0, 20), (2.31, 23)]
)
def test_weights_repeat_rows_with_ids_of_their_own(weight, expected):
    mix = mix_rows(BY_SOURCE, [MixComponent(source="a", weight=weight)], seed=1)
    ids = [row.id for row in mix.rows]
    assert len(ids) == len(set(ids)) == expected
    copies = Counter(original_id(id) for id in ids)
    assert max(copies.values()) - min(copies.values() if len(copies) == 10 else [0]) <= 1


def test_count_takes_what_there_is_and_says_what_is_missing():
    components = [MixComponent(source="a", count=4), MixComponent(source="c", count=3)]
    mix = mix_rows(BY_SOURCE, components, seed=1)
    assert Counter(row.source for row in mix.rows) == {"a": 4, "c": 1}
    assert mix.missing == {"c": 2}


def test_choice_of_one_source_does_not_depend_on_the_others():
    alone = mix_rows(BY_SOURCE, [MixComponent(source="b", count=7)], seed=3)
    beside = mix_rows(
        BY_SOURCE, [MixComponent(source="a"), MixComponent(source="b", count=7)], seed=3
    )
    assert {r.id for r in alone.rows} == {r.id for r in beside.rows if r.source == "b"}


def test_seed_decides_choice_and_order():
    components = [MixComponent(source="b", count=20)]
    one, again, other = (
        [row.id for row in mix_rows(BY_SOURCE, components, seed=seed).rows] for seed in (1, 1, 2)
    )
    assert one == again
    assert set(one) != set(other)
    assert one != sorted(one)


sizes = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 50), min_size=1)


@given(sizes, st.floats(0, 1))
def test_proportional_shares_add_up_and_stay_within_one_of_the_exact_share(sizes, fraction):
    total = int(fraction * sum(sizes.values()))
    shares = proportional(sizes, total)
    assert sum(shares.values()) == total
    for name, size in sizes.items():
        assert abs(shares[name] - total * size / sum(sizes.values())) < 1
        assert 0 <= shares[name] <= size


def test_stratified_sample():
    drawn = stratified(BY_SOURCE, 25, seed=1, what="x")
    assert {s: len(r) for s, r in group_by_source(drawn).items()} == {"a": 5, "b": 20}
    assert len(stratified(BY_SOURCE, 1000, seed=1, what="x")) == 51
    assert stratified({}, 3, seed=1, what="x") == []
