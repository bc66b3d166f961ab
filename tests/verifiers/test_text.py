from __future__ import annotations

import pytest

from caravan.verifiers.text import count_sentences, count_upper_case_tokens, count_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No full stop", 1),
        ("One. Two! Three? And a rest", 4),
        ("He met Dr. A. Smith, e.g. at 3.5 km. Then he left.", 2),
        ('She said: "Stop!" Then she left.', 2),
        ("Wait... what? Yes.", 2),
        ("Wait... Then go.", 2),
        ("It was 5 p.m. and late. The U.S. team won in the U.S. The end.", 3),
        ("one\ntwo\nthree", 1),
        ("Really?! Yes!!! (No.) Ok.", 4),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("nothing here", 0),
        ("I AM", 2),
        ("I'm here", 1),
        ("THE U.S.A. AND NASA's, A-B.", 5),
        ("WELL--DONE", 2),
        ("CANNOT", 2),
        ("X1 1X 1", 2),
    ],
)
def test_upper_case_tokens(text: str, count: int) -> None:
    assert count_upper_case_tokens(text) == count


def test_words_are_runs_of_word_characters() -> None:
    assert count_words("don't over-think it, naïve one") == 7
