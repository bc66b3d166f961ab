import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from caravan.data import dedup
from caravan.data.dedup import (
    ExactDuplicates,
    NearDuplicates,
    jaccard,
    normalise,
    rows_per_band,
    shingle_hashes,
)
from caravan.data.records import Conversation, Message


def row(id: str, *turns: str) -> Conversation:
    messages = tuple(
        Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(turns)
    )
    return Conversation(id=id, messages=messages, source="s", skill="chat", license="MIT")


def test_exact_duplicates_differ_in_case_and_white_space_only():
    exact = ExactDuplicates()
    assert exact.find_or_add(row("a", "Hello  there", "Hi")) is None
    found = exact.find_or_add(row("b", "hello\nthere ", "hi"))
    assert found is not None
    assert (found.of, found.similarity) == ("a", 1.0)
    assert exact.find_or_add(row("c", "hello there", "good morning")) is None
    # the border between turns counts
    assert exact.find_or_add(row("d", "hello there hi")) is None


words = st.lists(st.sampled_from("abcdefgh"), max_size=14)


@given(words, words)
def test_similarity_is_the_jaccard_index_of_word_5_grams(a, b):
    def grams(tokens: list[str]) -> set[tuple[str, ...]]:
        width = min(5, len(tokens))
        return (
            {tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)}
            if width
            else set()
        )

    expected = grams(a) & grams(b), grams(a) | grams(b)
    if a and b:
        similarity = jaccard(shingle_hashes(" ".join(a)), shingle_hashes(" ".join(b)))
        assert similarity == len(expected[0]) / len(expected[1])


def test_near_duplicate_is_found_with_its_similarity_and_the_first_stays():
    text = " ".join(f"word{i}" for i in range(104))  # 100 shingles
    near = NearDuplicates(0.9)
    assert near.find_or_add("first", text) is None
    found = near.find_or_add("second", text + " and more")  # 2 shingles more
    assert found is not None
    assert (found.of, found.similarity) == ("first", 100 / 102)
    # changing a word in the middle replaces 5 shingles: 95 / 105 is still above 0.9
    assert near.find_or_add("third", text.replace("word50", "other")) is not None
    # two words: 90 / 110 is not
    twice = text.replace("word50", "other").replace("word70", "other")
    assert near.find_or_add("fourth", twice) is None


def test_short_and_empty_texts():
    near = NearDuplicates(0.9)
    assert near.find_or_add("a", "two words") is None
    assert near.find_or_add("b", "Two  words") is not None
    assert near.find_or_add("c", "words two") is None
    assert near.find_or_add("d", " ") is None
    assert near.find_or_add("e", "") is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_near_duplicates_equal_those_of_comparing_all_pairs(seed):
    rng = random.Random(seed)

    def words() -> list[str]:
        return [f"w{rng.randrange(500)}" for _ in range(60)]

    def varied(base: list[str]) -> str:
        tokens = list(base) if rng.random() < 0.8 else words()
        for _ in range(rng.randrange(3)):
            tokens[rng.randrange(60)] = "changed"
        return " ".join(tokens)

    prompt, reply = words(), words()
    rows = [(varied(prompt), varied(reply) if rng.random() < 0.7 else "") for _ in range(14)]
    parts = [(shingle_hashes(asked), shingle_hashes(answer)) for asked, answer in rows]
    near, kept = NearDuplicates(0.8), []
    for n, row in enumerate(rows):
        found = near.find_or_add(str(n), *row)
        best = max((min(map(jaccard, parts[n], parts[k])) for k in kept), default=0)
        assert (found.similarity if found else 0) == (best if best >= 0.8 else 0)
        if found is None:
            kept.append(n)


def test_banding_is_as_selective_as_recall_allows():
    assert rows_per_band(1.0) == 128
    assert rows_per_band(0.9) == 9
    assert rows_per_band(0.0) == 1


def test_results_do_not_depend_on_the_process():
    assert shingle_hashes("one two three four five six").tolist() == [
        835595122071527612,
        12002890092680862775,
    ]
    assert np.all(np.diff(shingle_hashes("a b c d e f g h i j").astype(float)) > 0)


def test_a_word_that_was_forgotten_has_the_same_hash_again(monkeypatch):
    texts = [" ".join(f"word{i}" for i in range(k, k + 9)) for k in range(20)]
    before = [shingle_hashes(text).tolist() for text in texts]
    monkeypatch.setattr(dedup, "REMEMBERED_WORDS", 3)
    monkeypatch.setattr(dedup, "_HASHES", dedup._WordHashes())
    assert [shingle_hashes(text).tolist() for text in texts] == before
    assert len(dedup._HASHES) <= 3


def test_repeated_shingles_count_once():
    text = " ".join(["again and again we say"] * 3)
    assert len(shingle_hashes(text)) == 5


def test_normalise():
    assert normalise(" Ｆull  WIDTH\u00a0straße ") == "full width strasse"
