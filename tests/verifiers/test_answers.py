"""The verifiers that compare one answer: gsm8k, math, exact_match, contains, f1, choice, bbh."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.errors import DataError
from caravan.verifiers import VERIFIERS, verify
from caravan.verifiers.gsm8k import last_number
from caravan.verifiers.match import extract_choice
from caravan.verifiers.math import candidates, last_boxed

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("CARAVAN_TEST_DATA", SHARED)) / "eval"


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("3 + 4 = 7, so she has $18.00.", "18.00"),
        ("-3", "-3"),
        ("5-3", "3"),
        ("5 - 3", "3"),
        ("it is −4.", "-4"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("costs $1,234,567.50!", "1234567.50"),
        ("1,2,3", "3"),
        ("first 7 then .5", ".5"),
        ("x^2-7", "7"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_is_taken(completion: str, number: str | None) -> None:
    assert last_number(completion) == number


def test_gsm8k_compares_numbers_and_not_their_spelling() -> None:
    assert verify("gsm8k", "so $18.00", "18").correct
    assert verify("gsm8k", "so 1,000", "1000").correct
    assert verify("gsm8k", "so 0.50", ".5").correct
    assert verify("gsm8k", "so 18", "work <<9*2=18>>\n#### 18").correct
    assert not verify("gsm8k", "so -18", "18").correct
    assert not verify("gsm8k", "no idea", "18").correct
    with pytest.raises(DataError, match="holds no number"):
        verify("gsm8k", "18", "none")


@given(st.integers(-(10**12), 10**12), st.booleans())
def test_gsm8k_reads_back_every_integer(number: int, grouped: bool) -> None:
    text = f"{number:,}" if grouped else str(number)
    assert verify("gsm8k", f"The answer is {text}.", str(number)).correct
    assert not verify("gsm8k", f"The answer is {text}.", str(number + 1)).correct


@given(st.text())
def test_no_text_makes_a_verifier_fail(text: str) -> None:
    truths = {
        "choice": "A",
        "bbh": "(B)",
        "gsm8k": "1",
        "exact_match": "x",
        "contains": ["x"],
        "f1": "x",
    }
    for name, truth in truths.items():
        assert 0.0 <= verify(name, text, truth).score <= 1.0
    candidates(text)


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_gsm8k_accepts_all_answers_of_its_test_set() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k/test.jsonl").read_text().splitlines()]
    answers = [row["answer"].rpartition("####")[2].strip() for row in rows]
    wrong = [
        a
        for row, a in zip(rows, answers, strict=True)
        if not verify("gsm8k", row["answer"], a).correct
    ]
    assert (len(rows), wrong) == (1319, [])


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"$\boxed{1}$ or rather \boxed{\{x : x > 2\}}", r"\{x : x > 2\}"),
        (r"\boxed 7", "7"),
        (r"\boxed{unclosed", None),
        ("nothing", None),
    ],
)
def test_boxed(completion: str, answer: str | None) -> None:
    assert last_boxed(completion) == answer


def test_math_candidates_in_order_of_trust() -> None:
    minerva = "The final answer is $x+1$. I hope it is correct."
    assert candidates(r"\boxed{2} " + minerva) == ("2", "x+1")
    assert candidates("first $1$ then $2$.") == ("2",)
    assert candidates("just 42") == ("just 42",)


@pytest.mark.parametrize(
    ("completion", "truth", "correct"),
    [
        (r"\boxed{1/2}", "0.5", True),
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", True),
        (r"The final answer is $2\sqrt{3}$. I hope it is correct.", r"\sqrt{12}", True),
        (r"so $x = 5$", "5", True),
        (r"\boxed{(3,\pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", True),
        (r"\boxed{10,\!000}", "10000", True),
        (r"\boxed{\text{Evelyn}}", "Evelyn", True),
        (r"\boxed{7}", "8", False),
        (r"\boxed{(2,3)}", "(3,2)", False),
        (r"\boxed{}", "3", False),
        ("", "3", False),
    ],
)
def test_math_equivalence(completion: str, truth: str, correct: bool) -> None:
    assert verify("math", completion, truth).correct is correct


def test_math_works_outside_the_main_thread() -> None:
    seen = []
    thread = threading.Thread(target=lambda: seen.append(verify("math", r"\boxed{6/4}", "1.5")))
    thread.start()
    thread.join(60)
    assert seen[0].correct


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_boxed_gives_the_answer_of_all_rows_of_math500() -> None:
    rows = [json.loads(line) for line in (DATA / "math/math500.jsonl").read_text().splitlines()]
    assert len(rows) == 500
    assert [r["answer"] for r in rows if last_boxed(r["solution"]) != r["answer"]] == []
    assert all(verify("math", row["solution"], row["answer"]).correct for row in rows)


def test_text_matches_are_normalised() -> None:
    assert verify("normalised_match", " The Eiffel Tower! ", "eiffel tower").correct
    assert verify("normalised_match", "b", ["a b c", "B."]).correct
    assert not verify("normalised_match", "the tower", "eiffel tower").correct
    assert not verify("normalised_match", "!", "?").correct
    assert verify("contains", "It is Paris, France.", ["Lyon", "paris"]).extracted == "paris"
    assert not verify("contains", "a party", "art").correct
    assert verify("f1", "the red house", "house").score == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="neither a text"):
        verify("contains", "x", None)


def test_an_exact_match_is_one_of_form_too() -> None:
    assert verify("exact_match", " The  blue Tower.\n", "the blue tower").correct
    assert verify("exact_match", "- a\n- b", ["1. a\n2. b", "- a\n- b"]).correct
    for other in ("a, b", "a b", "- a\n- b", "a,b,", ""):
        assert not verify("exact_match", other, "a,b").correct


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("A is wrong. Therefore, the answer is (C).", "C"),
        ("The answer is **B**", "B"),
        ("Answer: D", "D"),
        ("B is correct", "B"),
        ("I take (C), not", "C"),
        ("A good one is D", "D"),
        ("a\nB", "B"),
        ("A", "A"),
        ("none of them", None),
    ],
)
def test_choice_letter(completion: str, letter: str | None) -> None:
    assert extract_choice(completion) == letter


@pytest.mark.parametrize(
    ("completion", "target", "correct"),
    [
        ("Think. So the answer is (B).", "(B)", True),
        ("So the answer is B", "(B)", True),
        ("So the answer is True.", "True", True),
        ("So the answer is not True.", "True", False),
        ("Step.\n> ]", "> ]", True),
        ("So the answer is barn damp.", "barn damp", True),
        ("", "Yes", False),
    ],
)
def test_bbh(completion: str, target: str, correct: bool) -> None:
    assert verify("bbh", completion, target).correct is correct


def test_an_unknown_verifier_is_named_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown verifier 'gms8k'; there are bbh, .*gsm8k"):
        verify("gms8k", "", "1")
    assert {"gsm8k", "math", "ifeval", "exact_match", "contains", "code"} <= set(VERIFIERS)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Therefore, the final answer is $-3*b**2 + 5*b$. I hope it is correct.", "-3*b**2 + 5*b"),
        ("The final answer is 5*b - 3*b^2.", "-3*b**2 + 5*b"),
        ("2*(x - 1)*(x + 1)", "2*x**2 - 2"),
        ("**True**.", "True"),
        ("yes", "True"),
        ("The answer is 1.75", "7/4"),
        ("[-5, 2, 3/7]", "-5, 2, 3/7"),
        ("240 - sqrt(8)", "-2*sqrt(2) + 240"),
        ("1,234", "1234"),
        ("7:15 pm", "7:15 PM"),
        ("The answer is 3. No: the final answer is 4.", "4"),
    ],
)
def test_expressions_that_are_equal(said: str, answer: str) -> None:
    assert verify("expression", said, answer).correct


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("", "3"),
        ("0.333", "1/3"),
        ("x**2", "y**2"),
        ("2, -5", "-5, 2"),
        ("1, 2", "1"),
        ("1/x - 1/x + 3*0", "1/x"),
        ("True", "False"),
        ("__import__('os').getpid()", "3"),
        ("9**9**9**9", "3"),
        ("(" * 300 + "3" + ")" * 300, "3"),
        ("f(2)", "2"),
        ("1/0", "1"),
    ],
)
def test_expressions_that_differ_or_are_none(said: str, answer: str) -> None:
    assert not verify("expression", said, answer).correct


@given(st.text(max_size=60))
def test_no_text_breaks_the_comparison_of_expressions(text: str) -> None:
    assert not verify("expression", text, "x**2 - 1").correct
    assert verify("expression", f"The answer is {text}\nThe answer is 7", "7").correct
