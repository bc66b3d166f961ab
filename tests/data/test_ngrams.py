import time

from hypothesis import given, settings
from hypothesis import strategies as st

from caravan.data.ngrams import NgramIndex, tokenize

QUESTION = "which planet of the solar system has the most known moons today"  # 12 tokens


def brute_force(prompt: str, texts: list[str], n: int) -> set[int]:
    """Covered positions, by comparing every window with every window."""
    tokens = tokenize(prompt)
    width = min(n, len(tokens))
    covered: set[int] = set()
    for text in texts:
        other = tokenize(text)
        for i in range(len(tokens) - width + 1):
            for j in range(len(other) - width + 1):
                if width and tokens[i : i + width] == other[j : j + width]:
                    covered |= set(range(i, i + width))
    return covered


text = st.lists(st.sampled_from(["a", "b", "c", "A,", "-", "x y"]), max_size=14).map(" ".join)


@settings(max_examples=300)
@given(st.lists(text, max_size=4), st.lists(text, max_size=3), st.integers(1, 9))
def test_coverage_equals_brute_force(prompts, row, n):
    index = NgramIndex(prompts, n)
    expected = {k: brute_force(prompt, row, n) for k, prompt in enumerate(prompts)}
    assert index.covered(row) == {k: found for k, found in expected.items() if found}


def test_tokens_are_those_of_the_reference():
    assert tokenize('Is 3*x+1 = (x-2)? "Yes",\nno; a\\b: END!') == [
        "is", "3*x+1", "=", "x", "2", "yes", "no", "a", "b", "end",
    ]  # fmt: skip


def test_copied_question_is_covered_by_the_share_of_its_tokens():
    index = NgramIndex([QUESTION], 8)
    assert index.coverages([QUESTION.upper()]) == {0: 1.0}
    assert index.coverages([f"Please answer: {QUESTION.removesuffix(' today')}"]) == {0: 11 / 12}
    assert index.coverages(["write a poem about the moons of the solar system"]) == {}
    # seven tokens in a row are no 8-gram
    assert index.coverages(["of the solar system has the most"]) == {}


def test_question_inside_a_long_document_is_found():
    document = " ".join(f"filler{i}" for i in range(5000))
    assert NgramIndex([QUESTION]).coverages([f"{document} {QUESTION}? {document}"]) == {0: 1.0}


def test_an_ngram_is_found_at_every_place_of_a_document():
    """Only every fifth place is looked at at first."""
    ngram = " ".join(QUESTION.split()[2:10])
    for before in range(12):
        for after in range(6):
            document = " ".join(["of"] * before + [ngram] + ["planet"] * after)
            assert NgramIndex([QUESTION], 8).covered([document]) == {0: set(range(2, 10))}


def test_ngrams_do_not_span_turns_but_turns_add_up():
    index = NgramIndex([QUESTION], 6)
    first, second = QUESTION[:32], QUESTION[33:]
    assert (len(tokenize(first)), len(tokenize(second))) == (6, 6)
    assert index.coverages([first]) == {0: 0.5}
    assert index.coverages([first, second]) == {0: 1.0}
    assert NgramIndex([QUESTION], 7).coverages([first, second]) == {}


def test_short_prompts_match_as_a_whole_and_empty_ones_never():
    index = NgramIndex(["capital of France?", "...", QUESTION], 8)
    assert (index.short, index.empty) == (1, 1)
    assert index.coverages(["What is the capital of france, please"]) == {0: 1.0}
    assert index.coverages(["the capital city of France"]) == {}


def test_every_prompt_with_a_common_ngram_is_found():
    shared = "what is the value of the following expression today"
    prompts = [f"{shared} {i} plus {i}" for i in range(3000)]
    assert len(NgramIndex(prompts).coverages([shared])) == 3000


def test_matched_text_marks_gaps():
    index = NgramIndex([QUESTION], 8)
    assert index.matched_text(0, [1, 2, 3, 10, 11]) == "… planet of the … moons today"
    assert index.matched_text(0, range(11)).endswith("moons …")


def test_a_thousand_rows_take_less_than_a_second():
    prompts = [
        f"question {i} asks for the {i} th of {i % 13} things in order" for i in range(20000)
    ]
    index = NgramIndex(prompts)
    rows = [" ".join(f"{(i * j) % 977} in order" for j in range(50)) for i in range(1000)]
    start = time.process_time()
    for row in rows:
        index.covered([row])
    assert time.process_time() - start < 1.0  # 0.15 s on the machine this was written on
